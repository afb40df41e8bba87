#pragma once

#include <c10/cuda/CUDAException.h>

#include "cuda/finish.cuh"
#include "cuda/step_chunk.cuh"

// The kernel of a local step. Beside the chunk itself: what of it is to be done, the norm, and the count of steps.
namespace grawa::cuda {

// Blocks of a multiprocessor at once. Three have 48 KB of loads in flight, which hide the latency of an H200's memory.
// float64, and sm_100 and newer whatever the dtype, would spill registers with three; sums of pairs would with four.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <typename Update, bool kIsDouble>
constexpr int kStepBlocks = 2;
#else
template <typename Update, bool kIsDouble>
constexpr int kStepBlocks = kIsDouble        ? 2
                            : kHasFastDouble ? Update::kBlocks
                                             : 3;
#endif

template <typename Wide, typename Rule>
__device__ StepWork<Wide> work_of(const StepArguments<Rule>& arguments, const StepOperands& operands,
                                  const StepSettings<Rule>& settings) {
  const bool has_overflowed = arguments.found_inf.data != nullptr && arguments.found_inf.read() > 0;
  StepWork<Wide> work;
  work.is_update = operands.has_grad != 0 && !has_overflowed;
  work.is_scaled = work.is_update && arguments.grad_scale.data != nullptr;
  work.has_norm = work.is_update && operands.norm_row >= 0;
  // GradScaler multiplies by the inverse, too.
  work.inverse_scale = work.is_scaled ? static_cast<Wide>(1 / arguments.grad_scale.read()) : 1;
  const double pull = operands.pull.data != nullptr ? operands.pull.read() : settings.pull;
  work.pull = operands.center == nullptr ? 0 : static_cast<Wide>(pull);
  return work;
}

template <typename Update, bool kIsDouble>
__global__ void __launch_bounds__(kThreads, kStepBlocks<Update, kIsDouble>)
    step_kernel(const __grid_constant__ StepArguments<typename Update::Rule> arguments) {
  const Chunk chunk = find_chunk(arguments.view);
  const StepOperands& operands = static_cast<const StepOperands*>(arguments.view.operands)[chunk.layer];
  const int64_t place = operands.settings - arguments.first;
  if (place < 0 || place >= arguments.count) return;
  if (!is_of_kind<kIsDouble>(chunk.dtype)) return;
  const auto& settings = arguments.settings[place];
  using Wide = std::conditional_t<kIsDouble, double, float>;
  const auto work = work_of<Wide>(arguments, operands, settings);
  if (!work.is_update && operands.norm_row >= 0 && chunk.index == 0 && threadIdx.x == 0) {
    arguments.norms.write(operands.norm_row, kNoGradient);
  }
  if (!work.is_update && work.pull == 0) return;
  const double lr = operands.lr.data != nullptr ? operands.lr.read() : settings.lr;
  const auto numbers = Update::numbers(settings, lr, operands.count);
  std::conditional_t<kIsDouble, Partial, double> sum = {};
  dispatch_kind<kIsDouble>(chunk.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    const typename Update::template Factors<Wide> factors(settings.rule, numbers);
    sum = step_chunk<Update, X>(chunk, operands, work, factors);
  });
  const bool is_counted = work.is_update && operands.count.data != nullptr;
  if (!work.has_norm && !is_counted) return;
  // All blocks of a layer have read the count before the last of them changes it.
  if (is_counted && threadIdx.x == 0) fence();
  finish_layer(arguments.view, chunk, sum, [&](double norm) {
    if (work.has_norm) arguments.norms.write(operands.norm_row, norm);
    if (!is_counted) return;
    fence();
    operands.count.write(operands.count.read() + 1);
  });
}

template <typename Update>
void launch_kernels(const StepArguments<typename Update::Rule>& arguments, Kinds kinds, cudaStream_t stream) {
  const int64_t blocks = arguments.view.chunk_count;
  if (kinds.has_narrower) {
    step_kernel<Update, false><<<blocks, kThreads, 0, stream>>>(arguments);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  if (kinds.has_double) {
    step_kernel<Update, true><<<blocks, kThreads, 0, stream>>>(arguments);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace grawa::cuda
