// The operators for lists of CUDA tensors. A list has no table that outlives the call: its pointers are uploaded each
// time, which LayerTable saves.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "copies.h"
#include "cuda/kernels.h"

namespace grawa::cuda {
namespace {

// A list that came here has a CUDA tensor somewhere: its device is that of all, or the checks will say so.
at::Device device_of(at::TensorList tensors, at::TensorList others) {
  for (const at::TensorList list : {tensors, others}) {
    for (const at::Tensor& tensor : list) {
      if (tensor.is_cuda()) return tensor.device();
    }
  }
  return at::kCUDA;
}

// Norms: the values of a sparse tensor, whose duplicate entries are added first. That may wait for the device, since
// the host must know how many are left.
at::Tensor dense_values(const at::Tensor& tensor) {
  return tensor.is_sparse() ? tensor.detach().coalesce().values() : tensor;
}

at::Tensor layer_norms_cuda(at::TensorList tensors) {
  const at::Device device = device_of(tensors, {});
  const c10::cuda::CUDAGuard guard(device);
  std::vector<at::Tensor> values;
  bool is_wide = false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    check_list_entry(tensor, "tensors", i, device);
    TORCH_CHECK(tensor.layout() == at::kStrided || tensor.layout() == at::kSparse, "tensors[", i, "] has layout ",
                tensor.layout(), ": strided and sparse COO are allowed");
    is_wide |= tensor.scalar_type() == at::kDouble;
    values.push_back(dense_values(tensor));
  }
  Copies copies;
  Table table(values, device, true);
  for (size_t i = 0; i < values.size(); ++i) {
    table.set(i, copies.span_of(values[i], Access::kRead), values[i].numel());
  }
  const auto options = at::TensorOptions().dtype(is_wide ? at::kDouble : at::kFloat).device(device);
  const at::Tensor norms = at::empty({static_cast<int64_t>(tensors.size())}, options);
  layer_norms(table, norms);
  return norms;
}

void pack_cuda(at::TensorList tensors, const at::Tensor& weights, const at::Tensor& out, const OptionalTensor& base) {
  const at::Device device = device_of(tensors, {weights, out});
  const c10::cuda::CUDAGuard guard(device);
  Copies copies;
  Table table(tensors, device, false);
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_list_entry(tensors[i], "tensors", i, device);
    check_strided(tensors[i], "tensors", i);
    table.set(i, copies.span_of(tensors[i], Access::kRead), tensors[i].numel());
  }
  pack(table, weights, out, base);
}

void blend_cuda(at::TensorList tensors, const at::Tensor& center, const at::Tensor& pull,
                const OptionalTensor& distances) {
  const at::Device device = device_of(tensors, {center, pull});
  const c10::cuda::CUDAGuard guard(device);
  Copies copies;
  Table table(tensors, device, distances.has_value());
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_list_entry(tensors[i], "tensors", i, device);
    check_strided(tensors[i], "tensors", i);
    check_writable(tensors[i], "tensors", i);
  }
  check_apart(tensors, "tensors");
  for (size_t i = 0; i < tensors.size(); ++i) {
    table.set(i, copies.span_of(tensors[i], Access::kWrite), tensors[i].numel());
  }
  blend(table, center, pull, distances);
  copies.put_back();
  for (const at::Tensor& tensor : tensors) mark_written(tensor);
}

}  // namespace

TORCH_LIBRARY_IMPL(grawa, CUDA, m) {
  m.impl("layer_norms", layer_norms_cuda);
  m.impl("pack", pack_cuda);
  m.impl("blend_", blend_cuda);
  m.impl("update_estimates_", update_estimates);
}

// All but layer_norms for the message: the list would otherwise go to the fallback for devices without a kernel.
TORCH_LIBRARY_IMPL(grawa, SparseCUDA, m) {
  m.impl("layer_norms", layer_norms_cuda);
  m.impl("pack", pack_cuda);
  m.impl("blend_", blend_cuda);
  m.impl("update_estimates_", update_estimates);
}

}  // namespace grawa::cuda
