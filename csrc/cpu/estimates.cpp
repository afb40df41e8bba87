#include <torch/library.h>

#include "checks.h"
#include "cpu/kernels.h"

namespace grawa::cpu {
namespace {

// Marks a layer that had no gradient in a list of norms.
constexpr double kNoGradient = -1;

void check_sums(const at::Tensor& tensor, const char* name, int64_t layers) {
  check_per_layer(tensor, name, layers, at::kCPU);
  TORCH_CHECK(tensor.scalar_type() == at::kDouble, name, " has dtype ", tensor.scalar_type(), ": float64 is needed");
}

void update_estimates_cpu(const at::Tensor& sums, const at::Tensor& counts, const at::Tensor& norms, double decay) {
  TORCH_CHECK(norms.dim() == 1, "norms has shape ", norms.sizes(), ": one dimension is needed, a norm per layer");
  const int64_t layers = norms.size(0);
  check_per_layer(norms, "norms", layers, at::kCPU);
  check_sums(sums, "sums", layers);
  check_sums(counts, "counts", layers);
  TORCH_CHECK(decay >= 0 && decay < 1, "decay is ", decay, ": it must be in [0, 1)");
  std::vector<double> values;
  read_scalars(norms, values);
  double* sum = sums.mutable_data_ptr<double>();
  double* count = counts.mutable_data_ptr<double>();
  for (int64_t layer = 0; layer < layers; ++layer) {
    if (values[layer] == kNoGradient) continue;
    double& layer_sum = sum[layer * sums.stride(0)];
    double& layer_count = count[layer * counts.stride(0)];
    layer_sum = decay * layer_sum + (1 - decay) * values[layer];
    layer_count = decay * layer_count + (1 - decay);
  }
  mark_written(sums);
  mark_written(counts);
}

}  // namespace

TORCH_LIBRARY_IMPL(grawa, CPU, m) { m.impl("update_estimates_", update_estimates_cpu); }

}  // namespace grawa::cpu
