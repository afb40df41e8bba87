#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>

namespace grawa {

// The elements of one layer, or of a flat buffer, in memory order.
struct Span {
  void* data = nullptr;
  at::ScalarType dtype = at::kFloat;
};

// In place of the norm of a gradient that does not exist.
constexpr double kNoGradient = -1;

// A sum of squares that holds values whose squares a double cannot: scale² · sum.
struct Partial {
  double scale = 1;
  double sum = 0;
};

inline Span read_span(const at::Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.scalar_type()};
}

inline Span write_span(const at::Tensor& tensor) { return {tensor.mutable_data_ptr(), tensor.scalar_type()}; }

inline bool overlap(const Span& a, int64_t a_numel, const Span& b, int64_t b_numel) {
  if (a_numel == 0 || b_numel == 0) return false;
  const auto begin = [](const Span& span) { return static_cast<const char*>(span.data); };
  const auto end = [&](const Span& span, int64_t numel) {
    return begin(span) + numel * static_cast<int64_t>(c10::elementSize(span.dtype));
  };
  return begin(a) < end(b, b_numel) && begin(b) < end(a, a_numel);
}

// Whether memory order is an order of the elements, so that no copy is needed.
inline bool is_dense(const at::Tensor& tensor) { return tensor.is_non_overlapping_and_dense() && !tensor.is_neg(); }

// From the first element in memory to the last, in elements; 0 of none.
inline int64_t extent_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  int64_t extent = 1;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) extent += (tensor.size(dim) - 1) * tensor.stride(dim);
  return extent;
}

// Whether its storage is as large as it says: a storage may be freed beneath a tensor, as sharding does. Of a strided
// one.
inline bool has_its_memory(const at::Tensor& tensor) {
  const int64_t extent = extent_of(tensor);
  if (extent == 0) return true;
  if (!tensor.has_storage()) return false;
  const c10::Storage& storage = tensor.unsafeGetTensorImpl()->unsafe_storage();
  const int64_t bytes = (tensor.storage_offset() + extent) * static_cast<int64_t>(tensor.element_size());
  // Tensors of zeros that autograd makes have none at all, whatever their storage says.
  return bytes <= static_cast<int64_t>(storage.nbytes()) && storage.data() != nullptr;
}

// Tensor::grad() also asks whether the tensor is a leaf, to warn: as costly as the norm of a small layer.
inline const at::Tensor& grad_of(const at::Tensor& param) { return param.unsafeGetTensorImpl()->grad(); }

// Autograd cannot see writes through a pointer: it must be told, or a backward pass would silently use new values.
inline void mark_written(const at::Tensor& tensor) {
  if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace grawa
