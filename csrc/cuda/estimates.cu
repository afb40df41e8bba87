// One step of the running gradient-norm estimates. 40 bytes per layer: a launch, and nothing else that would show.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/kernels.h"
#include "cuda/multi_tensor.cuh"

namespace grawa::cuda {
namespace {

__global__ void __launch_bounds__(kThreads)
    update_estimates_kernel(Scalars sums, Scalars counts, Scalars norms, int64_t layers, double decay) {
  const int64_t layer = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (layer >= layers) return;
  const double norm = norms.read(layer);
  if (norm == kNoGradient) return;
  sums.write(layer, decay * sums.read(layer) + (1 - decay) * norm);
  counts.write(layer, decay * counts.read(layer) + (1 - decay));
}

}  // namespace

void update_estimates(const at::Tensor& sums, const at::Tensor& counts, const at::Tensor& norms, double decay) {
  check_estimates(sums, counts, norms, decay);
  const int64_t layers = norms.size(0);
  mark_written(sums);
  mark_written(counts);
  if (layers == 0) return;
  const c10::cuda::CUDAGuard guard(norms.device());
  const at::Tensor plain_norms = norms.resolve_neg();
  const int64_t blocks = (layers + kThreads - 1) / kThreads;
  update_estimates_kernel<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      write_scalars(sums), write_scalars(counts), read_scalars(plain_norms), layers, decay);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace grawa::cuda
