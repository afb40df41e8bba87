#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "checks.h"
#include "chunks.h"
#include "copies.h"
#include "span.h"

// The kernels behind the operators, shared with LayerTable, which keeps what an operator must find out at each call.
namespace grawa::cpu {

// What a call works on; LayerTable keeps it, so that none of it is allocated again.
struct Workspace {
  std::vector<Span> spans;  // one per layer, in wire order; without data: nothing to do
  std::vector<Partial> partials;
  std::vector<double> scalars;
  Copies copies;
};

// A layer that shares memory with a buffer: its index, or -1.
int64_t find_overlap(const ChunkMap& chunks, const Workspace& work, const Span& buffer, int64_t buffer_numel);

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

}  // namespace grawa::cpu
