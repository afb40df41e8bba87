#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "cpu/kernels.h"

namespace grawa::cpu {

Span copy_span(const at::Tensor& tensor, at::IntArrayRef strides, Workspace& work) {
  at::NoGradGuard no_grad;
  const at::Tensor copy = at::empty_strided(tensor.sizes(), strides, tensor.options().requires_grad(false));
  copy.copy_(tensor);
  work.copies.push_back({tensor, copy});
  return write_span(copy);
}

Span span_of(const at::Tensor& tensor, Access access, Workspace& work) {
  if (is_dense(tensor)) return access == Access::kRead ? read_span(tensor) : write_span(tensor);
  std::vector<int64_t> strides(tensor.dim());
  int64_t stride = 1;
  for (int64_t dim = tensor.dim() - 1; dim >= 0; --dim) {
    strides[dim] = stride;
    stride *= tensor.size(dim);
  }
  return copy_span(tensor, strides, work);
}

void return_copies(Workspace& work) {
  at::NoGradGuard no_grad;
  for (const Copy& copy : work.copies) copy.original.detach().copy_(copy.copy);
  work.copies.clear();
}

void read_scalars(const at::Tensor& tensor, std::vector<double>& values) {
  const at::Tensor source = tensor.resolve_neg();
  const int64_t size = source.size(0);
  const int64_t stride = source.stride(0);
  values.resize(size);
  const auto copy = [&](const auto* data) {
    for (int64_t i = 0; i < size; ++i) values[i] = data[i * stride];
  };
  if (source.scalar_type() == at::kDouble) {
    copy(source.const_data_ptr<double>());
  } else {
    copy(source.const_data_ptr<float>());
  }
}

void write_scalar(const at::Tensor& tensor, int64_t index, double value) {
  const int64_t place = index * tensor.stride(0);
  if (tensor.scalar_type() == at::kDouble) {
    tensor.mutable_data_ptr<double>()[place] = value;
  } else {
    tensor.mutable_data_ptr<float>()[place] = static_cast<float>(value);
  }
}

std::vector<int64_t> numels_of(at::TensorList tensors) {
  std::vector<int64_t> numels;
  numels.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) numels.push_back(tensor.numel());
  return numels;
}

}  // namespace grawa::cpu
