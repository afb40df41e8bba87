#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include <cmath>
#include <type_traits>

#include "cpu/block_math.h"
#include "cpu/kernels.h"

namespace grawa::cpu {
namespace {

// Squares in this range add up, over any number of chunks, without leaving the range of a double.
bool is_safe(double sum) { return sum > 1e-250 && sum < 1e250; }

// block(begin, size) gives the address of that many values of the chunk.
template <typename Block>
void for_each_block(int64_t size, Block block) {
  for (int64_t begin = 0; begin < size; begin += kBlock) block(begin, std::min(kBlock, size - begin));
}

// The range of a double suffices for the squares of any narrower type, but not for its own.
template <typename Block>
Partial squares_of_doubles(int64_t size, Block block) {
  Partial partial;
  for_each_block(size, [&](int64_t begin, int64_t n) { partial.sum += sum_squares(block(begin, n), n); });
  if (is_safe(partial.sum) || std::isnan(partial.sum)) return partial;
  double largest = 0;
  for_each_block(size,
                 [&](int64_t begin, int64_t n) { largest = std::fmax(largest, max_magnitude(block(begin, n), n)); });
  if (largest == 0 || std::isinf(largest)) return partial;
  partial = {largest, 0};
  for_each_block(size,
                 [&](int64_t begin, int64_t n) { partial.sum += sum_scaled_squares(block(begin, n), largest, n); });
  return partial;
}

double norm_of(const Partial* partials, int64_t count) {
  if (count == 1) return partials->scale * std::sqrt(partials->sum);
  double largest = 0;
  double special = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(partials[i].sum)) special += partials[i].sum;
    if (partials[i].sum != 0) largest = std::fmax(largest, partials[i].scale);
  }
  if (special != 0) return special;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double ratio = largest == 0 ? 0 : partials[i].scale / largest;
    sum += partials[i].sum * ratio * ratio;
  }
  return largest * std::sqrt(sum);
}

}  // namespace

Partial squares(const Span& x, int64_t begin, int64_t size) {
  if (is_type<double>(x)) {
    return squares_of_doubles(size,
                              [&](int64_t i, int64_t) { return static_cast<const double*>(at_element(x, begin + i)); });
  }
  if (is_type<c10::BFloat16>(x)) return {1, sum_squares(static_cast<const c10::BFloat16*>(at_element(x, begin)), size)};
  const auto at_once = [&] { return Partial{1, sum_squares(static_cast<const float*>(at_element(x, begin)), size)}; };
  // The last chunk of a layer: nothing to look ahead for.
  if (is_type<float>(x) && size < ChunkMap::kChunk) return at_once();
  FloatSquares sums;
  float scratch[kBlock];
  for_each_block(size, [&](int64_t i, int64_t n) { add_squares(sums, load(x, begin + i, n, scratch), n); });
  if (!is_type<float>(x) || holds_float_sums(sums.total(), size)) return {1, sums.total()};
  return at_once();
}

Partial squared_distance(const Span& x, int64_t begin, const Span& center, int64_t center_begin, int64_t size) {
  if (is_type<double>(x) || is_type<double>(center)) {
    double from[kBlock], to[kBlock];
    return squares_of_doubles(size, [&](int64_t i, int64_t n) {
      subtract(to, load(center, center_begin + i, n, to), load(x, begin + i, n, from), n);
      return static_cast<const double*>(to);
    });
  }
  Partial partial;
  float from[kBlock], to[kBlock];
  for_each_block(size, [&](int64_t i, int64_t n) {
    partial.sum += sum_squared_differences(load(center, center_begin + i, n, to), load(x, begin + i, n, from), n);
  });
  return partial;
}

void write_norms(const ChunkMap& chunks, const Workspace& work, const at::Tensor& norms) {
  const auto write = [&](auto* first) {
    using Norm = std::remove_pointer_t<decltype(first)>;
    const int64_t stride = norms.stride(0);
    for (int64_t layer = 0; layer < chunks.layers(); ++layer) {
      const int64_t chunk = chunks.first_chunk(layer);
      const double norm = norm_of(work.partials.data() + chunk, chunks.first_chunk(layer + 1) - chunk);
      first[layer * stride] = static_cast<Norm>(norm);
    }
  };
  if (norms.scalar_type() == at::kDouble) {
    write(norms.mutable_data_ptr<double>());
  } else {
    write(norms.mutable_data_ptr<float>());
  }
}

void layer_norms(const ChunkMap& chunks, Workspace& work, const at::Tensor& norms) {
  work.partials.assign(chunks.chunks(), Partial());
  chunks.for_each([&](int64_t index, const Chunk& chunk) {
    const Span& span = work.spans[chunk.layer];
    if (span.data != nullptr) work.partials[index] = squares(span, chunk.begin, chunk.size);
  });
  write_norms(chunks, work, norms);
}

double sparse_norm(const at::Tensor& tensor, Workspace& work) {
  at::NoGradGuard no_grad;
  const at::Tensor values = tensor.coalesce().values();
  const Span span = work.copies.span_of(values, Access::kRead);
  const ChunkMap chunks({values.numel()});
  std::vector<Partial> partials(chunks.chunks());
  chunks.for_each([&](int64_t index, const Chunk& chunk) { partials[index] = squares(span, chunk.begin, chunk.size); });
  return norm_of(partials.data(), chunks.chunks());
}

namespace {

at::Tensor layer_norms_cpu(at::TensorList tensors) {
  Workspace work;
  std::vector<int64_t> numels;
  bool is_wide = false;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& tensor = tensors[i];
    check_list_entry(tensor, "tensors", i, at::kCPU);
    TORCH_CHECK(tensor.layout() == at::kStrided || tensor.layout() == at::kSparse, "tensors[", i, "] has layout ",
                tensor.layout(), ": strided and sparse COO are allowed");
    is_wide |= tensor.scalar_type() == at::kDouble;
    const bool is_sparse = tensor.is_sparse();
    numels.push_back(is_sparse ? 0 : tensor.numel());
    work.spans.push_back(is_sparse ? Span() : work.copies.span_of(tensor, Access::kRead));
  }
  const at::Tensor norms = at::empty({static_cast<int64_t>(tensors.size())}, is_wide ? at::kDouble : at::kFloat);
  layer_norms(ChunkMap(numels), work, norms);
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].is_sparse()) write_scalar(norms, i, sparse_norm(tensors[i], work));
  }
  return norms;
}

}  // namespace

TORCH_LIBRARY_IMPL(grawa, CPU, m) { m.impl("layer_norms", layer_norms_cpu); }
TORCH_LIBRARY_IMPL(grawa, SparseCPU, m) { m.impl("layer_norms", layer_norms_cpu); }

}  // namespace grawa::cpu
