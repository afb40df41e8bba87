#include <torch/library.h>

#include <cstring>

#include "cpu/block_math.h"
#include "cpu/kernels.h"

namespace grawa::cpu {
namespace {

template <typename Arithmetic>
void pack_chunk(const Span& x, int64_t begin, const Span& base, const Span& out, int64_t out_begin, double weight,
                int64_t size) {
  Arithmetic x_scratch[kBlock], base_scratch[kBlock];
  const Arithmetic factor = static_cast<Arithmetic>(weight);
  for (int64_t i = 0; i < size; i += kBlock) {
    const int64_t n = std::min(kBlock, size - i);
    const Arithmetic* values = load(x, begin + i, n, x_scratch);
    void* place = at_element(out, out_begin + i);
    Arithmetic* result = is_type<Arithmetic>(out) ? static_cast<Arithmetic*>(place) : x_scratch;
    if (base.data == nullptr) {
      scale(result, values, factor, n);
    } else {
      scale_difference(result, values, load(base, out_begin + i, n, base_scratch), factor, n);
    }
    if (!is_type<Arithmetic>(out)) convert(place, out.dtype, result, c10::CppTypeToScalarType<Arithmetic>::value, n);
  }
}

void pack_any(const Span& x, int64_t begin, const Span& base, const Span& out, int64_t out_begin, double weight,
              int64_t size) {
  if (weight == 0) {  // not a product: 0 · NaN would carry a diverged worker's parameters to all others
    std::memset(at_element(out, out_begin), 0, size * c10::elementSize(out.dtype));
  } else if (weight == 1 && base.data == nullptr) {
    convert(at_element(out, out_begin), out.dtype, at_element(x, begin), x.dtype, size);
  } else if (is_type<double>(x) || is_type<double>(out)) {
    pack_chunk<double>(x, begin, base, out, out_begin, weight, size);
  } else {
    pack_chunk<float>(x, begin, base, out, out_begin, weight, size);
  }
}

}  // namespace

void pack(const ChunkMap& chunks, Workspace& work, const at::Tensor& weights, const at::Tensor& out,
          const OptionalTensor& base) {
  const auto shares = [&](const Span& buffer, int64_t numel) { return find_overlap(chunks, work, buffer, numel); };
  check_pack(ListFacts{chunks.layers(), chunks.numel(), at::kCPU, shares}, weights, out, base);
  const Span out_span = write_span(out);
  const Span base_span = base.has_value() ? read_span(*base) : Span();
  read_scalars(weights, work.scalars);
  chunks.for_each([&](int64_t, const Chunk& chunk) {
    pack_any(work.spans[chunk.layer], chunk.begin, base_span, out_span, chunks.offset(chunk.layer) + chunk.begin,
             work.scalars[chunk.layer], chunk.size);
  });
  mark_written(out);
}

namespace {

void pack_cpu(at::TensorList tensors, const at::Tensor& weights, const at::Tensor& out, const OptionalTensor& base) {
  Workspace work;
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_list_entry(tensors[i], "tensors", i, at::kCPU);
    check_strided(tensors[i], "tensors", i);
  }
  const std::vector<int64_t> numels = numels_of(tensors);
  // Before copies are made of tensors that may be expanded to more elements than there is memory for.
  check_flat(out, "out", total_of(numels, "tensors"), at::kCPU);
  for (const at::Tensor& tensor : tensors) work.spans.push_back(work.copies.span_of(tensor, Access::kRead));
  pack(ChunkMap(numels), work, weights, out, base);
}

}  // namespace

TORCH_LIBRARY_IMPL(grawa, CPU, m) { m.impl("pack", pack_cpu); }
// For the message: the list would otherwise go to the fallback for devices without a kernel.
TORCH_LIBRARY_IMPL(grawa, SparseCPU, m) { m.impl("pack", pack_cpu); }

}  // namespace grawa::cpu
