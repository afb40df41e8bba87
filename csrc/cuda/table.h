#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/Stream.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "span.h"

namespace grawa::cuda {

// In place of the dtype of a layer that is not there: a parameter without a gradient.
constexpr int32_t kMissing = -1;

// In place of a word of a sum that no block has left yet: the bits of a NaN.
constexpr uint64_t kNoSum = ~uint64_t{0};

// One layer as the kernels see it, who read it in whole words of 16 bytes.
struct alignas(16) Layer {
  void* data = nullptr;
  int64_t numel = 0;
  int64_t offset = 0;      // of its first element in a flat buffer of all layers
  int64_t chunk_size = 0;  // in elements
  int32_t first_chunk = 0;
  int32_t chunk_count = 0;
  int32_t dtype = kMissing;
  uint32_t chunks_done = 0;  // counts up to the layer's chunks and wraps around: 0 between launches
};

constexpr int64_t kLayerWords = sizeof(Layer) / sizeof(uint64_t);

// What a kernel is given, all of it in device memory.
struct View {
  const int64_t* first_chunk;  // of each layer
  Layer* layers;
  const void* operands;  // what a kernel needs of each layer beside its data
  uint64_t* sums;        // one per chunk, a Partial or a double: kNoSum between launches
  int64_t layer_count;
  int64_t chunk_count;
};

// Which kernels a list of layers needs, where float64 has one of its own.
struct Kinds {
  bool has_double;
  bool has_narrower;  // or missing
};

// The layers of a list, mirrored in the memory of a device. A block of threads does one chunk, so any number of layers
// of any sizes is one launch. The division into chunks depends on the size and dtype of a layer alone: sums per chunk,
// added up in chunk order, are bitwise the same on any device.
class Table {
 public:
  // Bytes of a layer: enough for some loads of 16 bytes in each of 256 threads, few enough that small models fill a
  // GPU.
  static constexpr int64_t kChunk = 32 * 1024;
  // The last block of a layer adds up its chunks alone: chunks grow where they would be more.
  static constexpr int64_t kMostChunks = 16 * 1024;

  // Of the tensors only sizes and dtypes are read. Sums are needed by the kernels that add up: norms, distances.
  // operand_size: bytes of operands of a layer, whole words of 8.
  Table(at::TensorList tensors, c10::Device device, bool with_sums, int64_t operand_size = 0);

  c10::Device device() const { return device_; }
  int64_t layers() const { return layer_count_; }
  int64_t chunks() const { return chunk_count_; }
  int64_t numel() const { return numel_; }
  Kinds kinds() const { return {doubles_ > 0, doubles_ < layer_count_}; }

  // Of at most the elements given at construction.
  void set(int64_t layer, const Span& span, int64_t numel);
  void set_missing(int64_t layer);
  // Bytes for the kernels alone. Padding counts as a change: let there be none.
  template <typename Operands>
  void set_operands(int64_t layer, const Operands& operands) {
    static_assert(std::has_unique_object_representations_v<Operands> && std::is_trivially_copyable_v<Operands>);
    constexpr int64_t kWords = sizeof(Operands) / sizeof(uint64_t);
    uint64_t words[kWords];
    std::memcpy(words, &operands, sizeof(operands));
    uint64_t* place = words_.data() + operands_begin() + layer * kWords;
    uint64_t changes = 0;
    for (int64_t i = 0; i < kWords; ++i) {
      changes |= place[i] ^ words[i];
      place[i] = words[i];
    }
    is_uploaded_ &= changes == 0;
  }

  // The table on the current stream, for launches on that stream while the lease lives. Uploads what changed since the
  // last lease, without waiting. Needs a guard for the device.
  struct Lease {
    View view;
    c10::DataPtr memory;
  };
  Lease lease();

  // Whether a layer shares memory with a buffer: its index, or -1.
  int64_t find_overlap(const Span& buffer, int64_t buffer_numel) const;

 private:
  Layer* mirror();
  const Layer* mirror() const;
  void put(int64_t layer, void* data, int32_t dtype, int64_t numel);
  // Words. The layers are at a multiple of 16 bytes.
  int64_t layers_begin() const { return (layer_count_ + 1) / 2 * 2; }
  int64_t operands_begin() const { return layers_begin() + layer_count_ * kLayerWords; }
  View view_of(void* memory) const;
  c10::DataPtr allocate() const;

  c10::Device device_;
  bool with_sums_;
  int64_t layer_count_ = 0;
  int64_t chunk_count_ = 0;
  int64_t numel_ = 0;
  int64_t doubles_ = 0;          // layers of float64
  std::vector<uint64_t> words_;  // first_chunk, layers, operands: what is uploaded
  c10::DataPtr memory_;
  std::optional<c10::Stream> stream_;  // the one on which memory_ is used
  bool is_uploaded_ = false;
};

}  // namespace grawa::cuda
