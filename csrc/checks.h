#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "span.h"

namespace grawa {

using OptionalTensor = std::optional<at::Tensor>;

inline bool is_supported(at::ScalarType dtype) {
  return dtype == at::kHalf || dtype == at::kBFloat16 || dtype == at::kFloat || dtype == at::kDouble;
}

inline void check_list_entry(const at::Tensor& tensor, const char* name, int64_t index, at::Device device) {
  TORCH_CHECK(tensor.defined(), name, "[", index, "] is None: a tensor is needed");
  TORCH_CHECK(is_supported(tensor.scalar_type()), name, "[", index, "] has dtype ", tensor.scalar_type(),
              ": float16, bfloat16, float32 and float64 are allowed");
  TORCH_CHECK(tensor.device() == device, name, "[", index, "] is on ", tensor.device(), ": all must be on ", device);
  TORCH_CHECK(tensor.layout() != at::kStrided || has_its_memory(tensor), name, "[", index, "] has no memory for its ",
              tensor.numel(), " elements: its storage was freed");
}

inline void check_strided(const at::Tensor& tensor, const char* name, int64_t index) {
  TORCH_CHECK(tensor.layout() == at::kStrided, name, "[", index, "] has layout ", tensor.layout(),
              ": strided is allowed");
}

// Of an argument that is one tensor.
inline void check_has_memory(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.defined(), name, " is None: a tensor is needed");
  TORCH_CHECK(tensor.layout() == at::kStrided, name, " has layout ", tensor.layout(), ": strided is allowed");
  TORCH_CHECK(has_its_memory(tensor), name, " has no memory for its ", tensor.numel(),
              " elements: its storage was freed");
}

// A value per layer: weights, pulls, norms, estimates.
inline void check_per_layer(const at::Tensor& tensor, const char* name, int64_t layers, at::Device device) {
  check_has_memory(tensor, name);
  TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == layers, name, " has shape ", tensor.sizes(), ": [", layers,
              "] is needed, one value per tensor");
  TORCH_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble, name, " has dtype ",
              tensor.scalar_type(), ": float32 and float64 are allowed");
  TORCH_CHECK(tensor.device() == device, name, " is on ", tensor.device(), ": it must be on ", device);
}

// One that is written.
inline void check_per_layer_output(const at::Tensor& tensor, const char* name, int64_t layers, at::Device device) {
  check_per_layer(tensor, name, layers, device);
  TORCH_CHECK(layers < 2 || tensor.stride(0) > 0, name, " has elements that share memory: it cannot be written");
  TORCH_CHECK(!tensor.is_neg(), name, " is a negated view of memory: it cannot be written, clone it first");
}

// All layers one after the other: out, base, center.
inline void check_flat(const at::Tensor& tensor, const char* name, int64_t numel, at::Device device) {
  check_has_memory(tensor, name);
  TORCH_CHECK(is_supported(tensor.scalar_type()), name, " has dtype ", tensor.scalar_type(),
              ": float16, bfloat16, float32 and float64 are allowed");
  TORCH_CHECK(tensor.device() == device, name, " is on ", tensor.device(), ": it must be on ", device);
  TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == numel, name, " has shape ", tensor.sizes(), ": [", numel,
              "] is needed, the elements of all tensors");
  TORCH_CHECK(tensor.is_contiguous() && !tensor.is_neg(), name, " must be contiguous, but has stride ",
              tensor.strides());
}

// What the operators have for a list: how many layers and elements, where, and which layer shares memory with a buffer.
template <typename FindOverlap>
struct ListFacts {
  int64_t layers;
  int64_t numel;
  at::Device device;
  FindOverlap find_overlap;  // (span, numel) → index, or -1

  void check_separate(const at::Tensor& buffer, const char* name) const {
    const int64_t shared = find_overlap(read_span(buffer), extent_of(buffer));
    TORCH_CHECK(shared < 0, name, " shares memory with tensors[", shared, "]: separate memory is needed");
  }
};

template <typename FindOverlap>
ListFacts(int64_t, int64_t, at::Device, FindOverlap) -> ListFacts<FindOverlap>;

template <typename FindOverlap>
void check_pack(const ListFacts<FindOverlap>& list, const at::Tensor& weights, const at::Tensor& out,
                const OptionalTensor& base) {
  check_per_layer(weights, "weights", list.layers, list.device);
  check_flat(out, "out", list.numel, list.device);
  const Span out_span = read_span(out);
  if (base.has_value()) {
    check_flat(*base, "base", list.numel, list.device);
    TORCH_CHECK(base->scalar_type() == out.scalar_type(), "base has dtype ", base->scalar_type(), ": that of out, ",
                out.scalar_type(), ", is needed");
    const Span base_span = read_span(*base);
    TORCH_CHECK(base_span.data == out_span.data || !overlap(base_span, list.numel, out_span, list.numel),
                "base shares part of its memory with out: the same memory or separate memory is needed");
  }
  list.check_separate(out, "out");
}

template <typename FindOverlap>
void check_blend(const ListFacts<FindOverlap>& list, const at::Tensor& center, const at::Tensor& pull,
                 const OptionalTensor& distances) {
  check_flat(center, "center", list.numel, list.device);
  check_per_layer(pull, "pull", list.layers, list.device);
  list.check_separate(center, "center");
  if (!distances.has_value()) return;
  check_per_layer_output(*distances, "distances", list.layers, list.device);
  list.check_separate(*distances, "distances");
}

inline void check_estimates(const at::Tensor& sums, const at::Tensor& counts, const at::Tensor& norms, double decay) {
  check_has_memory(norms, "norms");
  TORCH_CHECK(norms.dim() == 1, "norms has shape ", norms.sizes(), ": one dimension is needed, a norm per layer");
  check_per_layer(norms, "norms", norms.size(0), norms.device());
  const auto check_sums = [&](const at::Tensor& tensor, const char* name) {
    check_per_layer_output(tensor, name, norms.size(0), norms.device());
    TORCH_CHECK(tensor.scalar_type() == at::kDouble, name, " has dtype ", tensor.scalar_type(), ": float64 is needed");
  };
  check_sums(sums, "sums");
  check_sums(counts, "counts");
  TORCH_CHECK(!overlap(read_span(sums), extent_of(sums), read_span(counts), extent_of(counts)),
              "sums shares memory with counts: separate memory is needed");
  TORCH_CHECK(decay >= 0 && decay < 1, "decay is ", decay, ": it must be in [0, 1)");
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

// Tensors that are all written. Of two with gaps between their elements that can be told only where both begin alike.
inline void check_apart(at::TensorList tensors, const char* name) {
  struct Place {
    const char* begin;
    const char* end;
    bool has_gaps;
    int64_t index;
  };
  std::vector<Place> places;
  for (int64_t i = 0; i < static_cast<int64_t>(tensors.size()); ++i) {
    if (tensors[i].numel() == 0) continue;
    const char* begin = static_cast<const char*>(tensors[i].const_data_ptr());
    const int64_t bytes = extent_of(tensors[i]) * static_cast<int64_t>(tensors[i].element_size());
    places.push_back({begin, begin + bytes, !tensors[i].is_non_overlapping_and_dense(), i});
  }
  std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) { return a.begin < b.begin; });
  const Place* last = nullptr;  // without gaps
  for (size_t i = 0; i < places.size(); ++i) {
    const Place* shared = i > 0 && places[i - 1].begin == places[i].begin ? &places[i - 1] : nullptr;
    if (!places[i].has_gaps) {
      if (last != nullptr && last->end > places[i].begin) shared = last;
      last = &places[i];
    }
    TORCH_CHECK(shared == nullptr, name, "[", places[i].index, "] shares memory with ", name, "[", shared->index,
                "]: separate memory is needed");
  }
}

inline int64_t total_of(const std::vector<int64_t>& numels, const char* name) {
  int64_t total = 0;
  for (const int64_t numel : numels) {
    TORCH_CHECK(numel <= std::numeric_limits<int64_t>::max() - total, name, " have more than 2^63 - 1 elements");
    total += numel;
  }
  return total;
}

}  // namespace grawa
