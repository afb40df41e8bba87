#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "checks.h"
#include "cuda/table.h"

// The kernels behind the operators, shared with LayerTable, which keeps the table of pointers. None of them waits for
// the device; all run on the current stream of the table's device.
namespace grawa::cuda {

// What the checks of arguments ask about a list.
inline auto facts_of(const Table& table) {
  const auto shares = [&table](const Span& buffer, int64_t numel) { return table.find_overlap(buffer, numel); };
  return ListFacts{table.layers(), table.numel(), at::Device(table.device()), shares};
}

// norms[l] = the norm of layer l, -1 where it is missing.
void layer_norms(Table& table, const at::Tensor& norms);
void pack(Table& table, const at::Tensor& weights, const at::Tensor& out, const OptionalTensor& base);
void blend(Table& table, const at::Tensor& center, const at::Tensor& pull, const OptionalTensor& distances);
void update_estimates(const at::Tensor& sums, const at::Tensor& counts, const at::Tensor& norms, double decay);

// Those that there is machine code for, as "sm_90".
std::vector<std::string> architectures();

}  // namespace grawa::cuda
