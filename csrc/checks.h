#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace grawa {

inline bool is_supported(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat || dtype == at::kDouble;
}

inline void check_list_entry(const at::Tensor& tensor, const char* name, int64_t index, at::Device device) {
  TORCH_CHECK(is_supported(tensor.scalar_type()), name, "[", index, "] has dtype ", tensor.scalar_type(),
              ": float16, bfloat16, float32 and float64 are allowed");
  TORCH_CHECK(tensor.device() == device, name, "[", index, "] is on ", tensor.device(), ": all must be on ", device);
}

inline void check_strided(const at::Tensor& tensor, const char* name, int64_t index) {
  TORCH_CHECK(tensor.layout() == at::kStrided, name, "[", index, "] has layout ", tensor.layout(),
              ": strided is allowed");
}

// A value per layer: weights, pulls, norms, estimates.
inline void check_per_layer(const at::Tensor& tensor, const char* name, int64_t layers, at::Device device) {
  TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == layers, name, " has shape ", tensor.sizes(), ": [", layers,
              "] is needed, one value per tensor");
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name, " has dtype ",
              tensor.scalar_type(), ": float32 and float64 are allowed");
  TORCH_CHECK(tensor.device() == device, name, " is on ", tensor.device(), ": it must be on ", device);
}

// All layers one after the other: out, base, center.
inline void check_flat(const at::Tensor& tensor, const char* name, int64_t numel, at::Device device) {
  TORCH_CHECK(is_supported(tensor.scalar_type()), name, " has dtype ", tensor.scalar_type(),
              ": float16, bfloat16, float32 and float64 are allowed");
  TORCH_CHECK(tensor.device() == device, name, " is on ", tensor.device(), ": it must be on ", device);
  TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == numel, name, " has shape ", tensor.sizes(), ": [", numel,
              "] is needed, the elements of all tensors");
  TORCH_CHECK(tensor.is_contiguous() && !tensor.is_neg(), name, " must be contiguous, but has stride ",
              tensor.strides());
}

// Whether two elements may be one place in memory, as in an expanded tensor. Never false for such a tensor.
inline bool may_overlap_itself(const at::Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    if (tensor.size(dim) == 0) return false;
    if (tensor.size(dim) > 1) dims.emplace_back(tensor.stride(dim), tensor.size(dim));
  }
  std::sort(dims.begin(), dims.end());
  int64_t extent = 1;
  for (const auto& [stride, size] : dims) {
    if (stride < extent) return true;
    extent += (size - 1) * stride;
  }
  return false;
}

inline void check_writable(const at::Tensor& tensor, const char* name, int64_t index) {
  TORCH_CHECK(tensor.is_non_overlapping_and_dense() || !may_overlap_itself(tensor), name, "[", index,
              "] has elements that share memory (sizes ", tensor.sizes(), ", strides ", tensor.strides(),
              "): it cannot be written in place, clone it first");
}

}  // namespace grawa
