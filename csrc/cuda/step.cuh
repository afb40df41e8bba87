#pragma once

#include <c10/cuda/CUDAException.h>

#include "cuda/step_chunk.cuh"

// The kernel of a local step. Beside the chunk itself: what of it is to be done, the norm, and the count of steps.
namespace grawa::cuda {

// Blocks of a multiprocessor at once. Three have 48 KB of loads in flight, which hide the latency of an H200's memory;
// float64, and sm_100 and newer whatever the dtype, would spill registers with three.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <bool kIsDouble>
constexpr int kStepBlocks = 2;
#else
template <bool kIsDouble>
constexpr int kStepBlocks = kIsDouble ? 2 : 3;
#endif

template <typename Rule>
__device__ StepWork work_of(const StepArguments<Rule>& arguments, const StepOperands& operands,
                            const StepSettings<Rule>& settings) {
  const bool has_overflowed = arguments.found_inf.data != nullptr && arguments.found_inf.read() > 0;
  StepWork work;
  work.is_update = operands.has_grad != 0 && !has_overflowed;
  work.is_scaled = work.is_update && arguments.grad_scale.data != nullptr;
  work.has_norm = work.is_update && operands.norm_row >= 0;
  // GradScaler multiplies by the inverse, too.
  work.inverse_scale = work.is_scaled ? 1 / arguments.grad_scale.read() : 1;
  work.pull = operands.center == nullptr ? 0 : operands.pull.data != nullptr ? operands.pull.read() : settings.pull;
  return work;
}

// work(Type<T>()) for the type of a layer, of those that a kernel does.
template <bool kIsDouble, typename Work>
__device__ void dispatch_kind(int32_t dtype, const Work& work) {
  if constexpr (kIsDouble) {
    work(Type<double>());
  } else if (dtype == static_cast<int32_t>(c10::ScalarType::Float)) {
    work(Type<float>());
  } else if (dtype == static_cast<int32_t>(c10::ScalarType::Half)) {
    work(Type<c10::Half>());
  } else {
    work(Type<c10::BFloat16>());
  }
}

template <typename Update, bool kIsDouble>
__global__ void __launch_bounds__(kThreads, kStepBlocks<kIsDouble>)
    step_kernel(const __grid_constant__ StepArguments<typename Update::Rule> arguments) {
  const Chunk chunk = find_chunk(arguments.view);
  const StepOperands& operands = static_cast<const StepOperands*>(arguments.view.operands)[chunk.layer];
  const int64_t place = operands.settings - arguments.first;
  if (place < 0 || place >= arguments.count) return;
  if ((chunk.dtype == static_cast<int32_t>(c10::ScalarType::Double)) != kIsDouble) return;
  const auto& settings = arguments.settings[place];
  const StepWork work = work_of(arguments, operands, settings);
  if (!work.is_update && operands.norm_row >= 0 && chunk.index == 0 && threadIdx.x == 0) {
    arguments.norms.write(operands.norm_row, kNoGradient);
  }
  if (!work.is_update && work.pull == 0) return;
  const double lr = operands.lr.data != nullptr ? operands.lr.read() : settings.lr;
  const auto numbers = Update::numbers(settings, lr, operands.count);
  Partial partial;
  dispatch_kind<kIsDouble>(chunk.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    const typename Update::template Factors<Arithmetic<X>> factors(settings.rule, numbers);
    partial = step_chunk<Update, X>(chunk, operands, work, factors);
  });
  const bool is_counted = work.is_update && operands.count.data != nullptr;
  if (!work.has_norm && !is_counted) return;
  finish_layer(arguments.view, chunk, partial, [&](double norm) {
    if (work.has_norm) arguments.norms.write(operands.norm_row, norm);
    if (is_counted) operands.count.write(operands.count.read() + 1);
  });
}

template <typename Update>
void launch_kernels(const StepArguments<typename Update::Rule>& arguments, StepKinds kinds, cudaStream_t stream) {
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
