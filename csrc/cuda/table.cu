// The pointer table. An upload is 56 bytes per layer, 152 for a step: 4 KB (10 KB) for the 65 layers of ResNet-20, so
// latency, not bandwidth.
#include <ATen/core/CachingHostAllocator.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "cuda/kernels.h"
#include "cuda/table.h"

namespace grawa::cuda {
namespace {

static_assert(sizeof(Layer) % sizeof(uint64_t) == 0 && sizeof(Partial) == 16);

// Kernel arguments may have 4 KB on every architecture.
struct Piece {
  static constexpr int64_t kWords = 480;
  uint64_t words[kWords];
};

__global__ void write_piece(const __grid_constant__ Piece piece, uint64_t* to, int64_t count) {
  const int64_t i = threadIdx.x;
  if (i < count) to[i] = piece.words[i];
}

// A graph replays its copies from the address they were captured with, and a staging buffer would long be another's by
// then. Arguments of kernels are part of the graph.
void upload_by_arguments(uint64_t* to, const std::vector<uint64_t>& words, cudaStream_t stream) {
  const int64_t size = static_cast<int64_t>(words.size());
  for (int64_t begin = 0; begin < size; begin += Piece::kWords) {
    const int64_t count = std::min(Piece::kWords, size - begin);
    Piece piece;
    std::copy_n(words.begin() + begin, count, piece.words);
    write_piece<<<1, Piece::kWords, 0, stream>>>(piece, to + begin, count);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

// From pageable memory the copy would wait for the device. The allocator keeps the staging buffer until the copy is
// done.
void upload_by_copy(uint64_t* to, const std::vector<uint64_t>& words, const c10::cuda::CUDAStream& stream) {
  at::HostAllocator* allocator = at::getHostAllocator(at::kCUDA);
  const size_t bytes = words.size() * sizeof(uint64_t);
  const c10::DataPtr staging = allocator->allocate(bytes);
  std::memcpy(staging.get(), words.data(), bytes);
  C10_CUDA_CHECK(cudaMemcpyAsync(to, staging.get(), bytes, cudaMemcpyHostToDevice, stream));
  allocator->record_event(staging.get(), staging.get_context(), stream.unwrap());
}

bool is_capturing() { return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None; }

int64_t chunk_size_of(const at::Tensor& tensor) {
  int64_t size = Table::kChunk / static_cast<int64_t>(tensor.element_size());
  while (size * Table::kMostChunks < tensor.numel()) size *= 2;
  return size;
}

}  // namespace

Table::Table(at::TensorList tensors, c10::Device device, bool with_sums, int64_t operand_size)
    : device_(device), with_sums_(with_sums), layer_count_(tensors.size()) {
  words_.resize(operands_begin() + layer_count_ * operand_size / static_cast<int64_t>(sizeof(uint64_t)));
  for (int64_t i = 0; i < layer_count_; ++i) {
    Layer layer;
    layer.offset = numel_;
    layer.chunk_size = chunk_size_of(tensors[i]);
    // A layer without elements has a chunk too: some block must write its norm.
    const int64_t chunks = std::max<int64_t>(1, (tensors[i].numel() + layer.chunk_size - 1) / layer.chunk_size);
    layer.first_chunk = static_cast<int32_t>(chunk_count_);
    layer.chunk_count = static_cast<int32_t>(chunks);
    std::memcpy(mirror() + i, &layer, sizeof(layer));
    words_[i] = chunk_count_;
    chunk_count_ += chunks;
    numel_ += tensors[i].numel();
  }
  TORCH_CHECK(chunk_count_ < (int64_t{1} << 31), "the tensors have ", numel_, " elements: more than one launch can do");
}

Layer* Table::mirror() { return reinterpret_cast<Layer*>(words_.data() + layers_begin()); }

const Layer* Table::mirror() const { return reinterpret_cast<const Layer*>(words_.data() + layers_begin()); }

void Table::put(int64_t layer, void* data, int32_t dtype, int64_t numel) {
  Layer& entry = mirror()[layer];
  if (entry.data == data && entry.dtype == dtype && entry.numel == numel) return;
  const auto is_double = [](int32_t dtype) { return dtype == static_cast<int32_t>(at::kDouble) ? 1 : 0; };
  doubles_ += is_double(dtype) - is_double(entry.dtype);
  entry.data = data;
  entry.dtype = dtype;
  entry.numel = numel;
  is_uploaded_ = false;
}

void Table::set(int64_t layer, const Span& span, int64_t numel) {
  put(layer, span.data, static_cast<int32_t>(span.dtype), numel);
}

void Table::set_missing(int64_t layer) { put(layer, nullptr, kMissing, 0); }

int64_t Table::find_overlap(const Span& buffer, int64_t buffer_numel) const {
  for (int64_t i = 0; i < layer_count_; ++i) {
    const Layer& layer = mirror()[i];
    const Span span{layer.data, static_cast<at::ScalarType>(layer.dtype)};
    if (overlap(span, layer.numel, buffer, buffer_numel)) return i;
  }
  return -1;
}

// A sum may be a double or a Partial: there is room for either. A layer of one chunk needs none.
c10::DataPtr Table::allocate() const {
  const size_t sums = with_sums_ && chunk_count_ > layer_count_ ? chunk_count_ * sizeof(Partial) : 0;
  const size_t words = words_.size() * sizeof(uint64_t);
  c10::DataPtr memory = c10::cuda::CUDACachingAllocator::get()->allocate(words + sums);
  static_assert(kNoSum == ~uint64_t{0});
  if (sums > 0)
    C10_CUDA_CHECK(cudaMemsetAsync(static_cast<char*>(memory.get()) + words, 0xff, sums,
                                   c10::cuda::getCurrentCUDAStream(device_.index())));
  return memory;
}

View Table::view_of(void* memory) const {
  const auto words = static_cast<uint64_t*>(memory);
  return {reinterpret_cast<const int64_t*>(words),
          reinterpret_cast<Layer*>(words + layers_begin()),
          words + operands_begin(),
          with_sums_ ? words + words_.size() : nullptr,
          layer_count_,
          chunk_count_};
}

Table::Lease Table::lease() {
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(device_.index());
  if (is_capturing()) {
    // A copy for the graph: its replays must neither see later changes of the table nor undo them.
    c10::DataPtr memory = allocate();
    upload_by_arguments(static_cast<uint64_t*>(memory.get()), words_, stream);
    const View view = view_of(memory.get());
    return {view, std::move(memory)};
  }
  if (!memory_ || stream_ != stream.unwrap()) {
    // Kernels on the other stream may still read the old one, which the allocator gives out again only behind them.
    memory_ = allocate();
    stream_ = stream.unwrap();
    is_uploaded_ = false;
  }
  if (!is_uploaded_) {
    upload_by_copy(static_cast<uint64_t*>(memory_.get()), words_, stream);
    is_uploaded_ = true;
  }
  return {view_of(memory_.get()), {}};
}

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const int number : {__CUDA_ARCH_LIST__}) names.push_back("sm_" + std::to_string(number / 10));
  return names;
}

}  // namespace grawa::cuda
