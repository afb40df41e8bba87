#include <torch/library.h>

#include "cpu/block_math.h"
#include "cpu/kernels.h"

namespace grawa::cpu {
namespace {

template <typename Arithmetic>
void blend_chunk(const Span& x, int64_t begin, const Span& center, int64_t center_begin, double pull, int64_t size) {
  Arithmetic x_scratch[kBlock], center_scratch[kBlock];
  const Arithmetic factor = static_cast<Arithmetic>(pull);
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = std::min(kBlock, size - i);
    const Arithmetic* values = load(x, begin + i, n, x_scratch);
    void* place = at_element(x, begin + i);
    Arithmetic* result = is_type<Arithmetic>(x) ? static_cast<Arithmetic*>(place) : x_scratch;
    move_toward(result, values, load(center, center_begin + i, n, center_scratch), factor, n);
    if (!is_type<Arithmetic>(x)) convert(place, x.dtype, result, c10::CppTypeToScalarType<Arithmetic>::value, n);
  }
}

void blend_any(const Span& x, int64_t begin, const Span& center, int64_t center_begin, double pull, int64_t size) {
  if (pull == 0) return;
  if (pull == 1) {  // x + 1 · (c − x) rounds, and a NaN in x would stay
    convert(at_element(x, begin), x.dtype, at_element(center, center_begin), center.dtype, size);
  } else if (is_type<double>(x) || is_type<double>(center)) {
    blend_chunk<double>(x, begin, center, center_begin, pull, size);
  } else {
    blend_chunk<float>(x, begin, center, center_begin, pull, size);
  }
}

}  // namespace

void blend(const ChunkMap& chunks, Workspace& work, const at::Tensor& center, const at::Tensor& pull,
           const OptionalTensor& distances) {
  const auto shares = [&](const Span& buffer, int64_t numel) { return find_overlap(chunks, work, buffer, numel); };
  check_blend(ListFacts{chunks.layers(), chunks.numel(), at::kCPU, shares}, center, pull, distances);
  const Span center_span = read_span(center);
  read_scalars(pull, work.scalars);
  if (distances.has_value()) work.partials.assign(chunks.chunks(), Partial());
  chunks.for_each([&](int64_t index, const Chunk& chunk) {
    const Span& span = work.spans[chunk.layer];
    const int64_t center_begin = chunks.offset(chunk.layer) + chunk.begin;
    // The chunk is still in the cache when it is read again.
    if (distances.has_value()) {
      work.partials[index] = squared_distance(span, chunk.begin, center_span, center_begin, chunk.size);
    }
    blend_any(span, chunk.begin, center_span, center_begin, work.scalars[chunk.layer], chunk.size);
  });
  if (!distances.has_value()) return;
  write_norms(chunks, work, *distances);
  mark_written(*distances);
}

namespace {

void blend_cpu(at::TensorList tensors, const at::Tensor& center, const at::Tensor& pull,
               const OptionalTensor& distances) {
  Workspace work;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_list_entry(tensors[i], "tensors", i, at::kCPU);
    check_strided(tensors[i], "tensors", i);
    check_writable(tensors[i], "tensors", i);
  }
  check_apart(tensors, "tensors");
  for (const at::Tensor& tensor : tensors) work.spans.push_back(work.copies.span_of(tensor, Access::kWrite));
  blend(ChunkMap(numels_of(tensors)), work, center, pull, distances);
  work.copies.put_back();
  for (const at::Tensor& tensor : tensors) mark_written(tensor);
}

}  // namespace

TORCH_LIBRARY_IMPL(grawa, CPU, m) { m.impl("blend_", blend_cpu); }
// For the message: the list would otherwise go to the fallback for devices without a kernel.
TORCH_LIBRARY_IMPL(grawa, SparseCPU, m) { m.impl("blend_", blend_cpu); }

}  // namespace grawa::cpu
