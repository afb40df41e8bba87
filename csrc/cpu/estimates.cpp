#include <torch/library.h>

#include "cpu/kernels.h"

namespace grawa::cpu {
namespace {

void update_estimates_cpu(const at::Tensor& sums, const at::Tensor& counts, const at::Tensor& norms, double decay) {
  check_estimates(sums, counts, norms, decay);
  std::vector<double> values;
  read_scalars(norms, values);
  double* sum = sums.mutable_data_ptr<double>();
  double* count = counts.mutable_data_ptr<double>();
  for (int64_t layer = 0; layer < norms.size(0); ++layer) {
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
// For the message.
TORCH_LIBRARY_IMPL(grawa, SparseCPU, m) { m.impl("update_estimates_", update_estimates_cpu); }

}  // namespace grawa::cpu
