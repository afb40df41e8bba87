#include "copies.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

namespace grawa {

Span Copies::add(const at::Tensor& tensor, at::IntArrayRef strides) {
  at::NoGradGuard no_grad;
  const at::Tensor copy = at::empty_strided(tensor.sizes(), strides, tensor.options().requires_grad(false));
  copy.copy_(tensor);
  copies_.push_back({tensor, copy});
  return write_span(copy);
}

Span Copies::span_of(const at::Tensor& tensor, Access access) {
  if (is_dense(tensor)) return access == Access::kRead ? read_span(tensor) : write_span(tensor);
  return add(tensor, row_major_strides(tensor));
}

void Copies::put_back() {
  at::NoGradGuard no_grad;
  for (const Copy& copy : copies_) {
    if (copy.original.defined()) copy.original.detach().copy_(copy.copy);
  }
  copies_.clear();
}

std::vector<int64_t> row_major_strides(const at::Tensor& tensor) {
  std::vector<int64_t> strides(tensor.dim());
  int64_t stride = 1;
  for (int64_t dim = tensor.dim() - 1; dim >= 0; --dim) {
    strides[dim] = stride;
    stride *= tensor.size(dim);
  }
  return strides;
}

bool is_dense_order(at::IntArrayRef sizes, at::IntArrayRef strides) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] == 0) return true;
    if (sizes[dim] > 1) dims.emplace_back(strides[dim], sizes[dim]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// The stride of a dimension of one element places nothing, and conversions change it at will.
bool in_wire_order(const at::Tensor& tensor, at::IntArrayRef strides) {
  if (tensor.is_neg()) return false;
  const at::IntArrayRef own = tensor.strides();
  for (size_t dim = 0; dim < own.size(); ++dim) {
    if (own[dim] != strides[dim] && tensor.size(dim) != 1) return false;
  }
  return true;
}

std::vector<int64_t> numels_of(at::TensorList tensors) {
  std::vector<int64_t> numels;
  numels.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) numels.push_back(tensor.numel());
  return numels;
}

}  // namespace grawa
