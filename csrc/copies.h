#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "span.h"

namespace grawa {

enum class Access { kRead, kWrite };

// Stand-ins for tensors whose memory is not in wire order; they live as long as a call, on the tensors' device.
class Copies {
 public:
  // The tensor's own memory where it is dense, else a row-major copy.
  Span span_of(const at::Tensor& tensor, Access access);
  // A copy with other strides.
  Span add(const at::Tensor& tensor, at::IntArrayRef strides);
  void keep(const at::Tensor& tensor) { copies_.push_back({at::Tensor(), tensor}); }
  // After a kernel wrote to the spans: to where they came from.
  void put_back();
  void clear() { copies_.clear(); }

 private:
  struct Copy {
    at::Tensor original;  // undefined: only kept alive
    at::Tensor copy;
  };
  std::vector<Copy> copies_;
};

// Of two short lists of numbers, for which the call of memcmp behind == would take longer than the comparison.
inline bool is_same(at::IntArrayRef a, at::IntArrayRef b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return false;
  }
  return true;
}

std::vector<int64_t> row_major_strides(const at::Tensor& tensor);
// Whether strides place the elements of a shape one after the other, in any order of the dimensions.
bool is_dense_order(at::IntArrayRef sizes, at::IntArrayRef strides);
// Whether the tensor's memory holds its elements in the order that the strides give.
bool in_wire_order(const at::Tensor& tensor, at::IntArrayRef strides);
std::vector<int64_t> numels_of(at::TensorList tensors);

}  // namespace grawa
