#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "chunks.h"
#include "span.h"

// The kernels behind the operators, shared with LayerTable, which keeps what an operator must find out at each call.
namespace grawa::cpu {

using OptionalTensor = std::optional<at::Tensor>;

// A stand-in for a tensor whose memory is not in wire order.
struct Copy {
  at::Tensor original;
  at::Tensor copy;
};

// What a call works on; LayerTable keeps it, so that none of it is allocated again.
struct Workspace {
  std::vector<Span> spans;  // one per layer, in wire order; without data: nothing to do
  std::vector<Partial> partials;
  std::vector<double> scalars;
  std::vector<Copy> copies;
};

enum class Access { kRead, kWrite };

// A copy of the tensor with other strides, kept in the workspace.
Span copy_span(const at::Tensor& tensor, at::IntArrayRef strides, Workspace& work);
// The tensor's own memory where it is dense, else a row-major copy.
Span span_of(const at::Tensor& tensor, Access access, Workspace& work);
// After a kernel wrote to the spans: puts copies back.
void return_copies(Workspace& work);

void read_scalars(const at::Tensor& tensor, std::vector<double>& values);
void write_scalar(const at::Tensor& tensor, int64_t index, double value);

// The squares of one chunk, and of one chunk's distance from the center.
Partial squares(const Span& x, int64_t begin, int64_t size);
Partial squared_distance(const Span& x, int64_t begin, const Span& center, int64_t center_begin, int64_t size);
// norms[layer] = the norm over that layer's chunks, added in chunk order.
void write_norms(const ChunkMap& chunks, const Workspace& work, const at::Tensor& norms);

void layer_norms(const ChunkMap& chunks, Workspace& work, const at::Tensor& norms);
double sparse_norm(const at::Tensor& tensor, Workspace& work);
void pack(const ChunkMap& chunks, Workspace& work, const at::Tensor& weights, const at::Tensor& out,
          const OptionalTensor& base);
void blend(const ChunkMap& chunks, Workspace& work, const at::Tensor& center, const at::Tensor& pull,
           const OptionalTensor& distances);

std::vector<int64_t> numels_of(at::TensorList tensors);

}  // namespace grawa::cpu
