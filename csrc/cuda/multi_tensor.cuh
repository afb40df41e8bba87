#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/assembly.cuh"
#include "cuda/table.h"

// What the kernels share: which chunk a block does, and how its elements are moved 16 bytes at a time.
namespace grawa::cuda {

constexpr int kThreads = 256;
constexpr unsigned kWholeWarp = 0xffffffff;

// A value per layer: weights, pulls, norms, estimates.
struct Scalars {
  void* data;
  int64_t stride;
  bool is_double;

  __device__ double read(int64_t i) const {
    return is_double ? static_cast<const double*>(data)[i * stride] : static_cast<const float*>(data)[i * stride];
  }
  __device__ void write(int64_t i, double value) const {
    if (is_double) {
      static_cast<double*>(data)[i * stride] = value;
    } else {
      static_cast<float*>(data)[i * stride] = static_cast<float>(value);
    }
  }
};

inline Scalars read_scalars(const at::Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.scalar_type() == at::kDouble};
}

inline Scalars write_scalars(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr(), tensor.stride(0), tensor.scalar_type() == at::kDouble};
}

// The work of one block. The numbers of chunks, of which a launch has less than 2^31, and the places within a chunk are
// narrower than sizes are elsewhere: pairs of registers for each would leave room for fewer blocks at a time.
struct Chunk {
  int64_t layer;
  int32_t first;  // of the layer's chunks
  int32_t index;  // within the layer
  int32_t count;  // of the layer's chunks
  void* data;     // of the layer
  int32_t dtype;
  int64_t begin;  // element within the layer
  int64_t flat;   // element within a flat buffer of all layers
  int32_t size;
};

// The layer of a chunk. A search with a warp's 128 probes at a time: one trip to the second-level cache for up to 128
// layers, two for 16384, where a binary search would make 7 and 14. Every warp searches by itself, which needs no
// barrier.
__device__ inline int32_t find_layer(const View& view, int32_t chunk) {
  constexpr int kProbes = 4;
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t low = 0;
  auto candidates = static_cast<int32_t>(view.layer_count);
  while (candidates > 1) {
    const int32_t step = (candidates + 32 * kProbes - 1) / (32 * kProbes);
    int32_t last = -1;
#pragma unroll
    for (int i = 0; i < kProbes; ++i) {
      const int32_t probe = (i * 32 + lane) * step;
      const bool is_before = probe < candidates && view.first_chunk[low + probe] <= chunk;
      last += __popc(__ballot_sync(kWholeWarp, is_before));
    }
    low += last * step;
    candidates = candidates - last * step < step ? candidates - last * step : step;
  }
  return low;
}

__device__ inline Chunk find_chunk(const View& view) {
  const auto place = static_cast<int32_t>(blockIdx.x);
  Chunk chunk;
  chunk.layer = find_layer(view, place);
  const Layer& layer = view.layers[chunk.layer];
  chunk.first = layer.first_chunk;
  chunk.index = place - layer.first_chunk;
  chunk.count = layer.chunk_count;
  chunk.data = layer.data;
  // Of a pointer that was read from memory the compiler knows no address space.
  __builtin_assume(__isGlobal(chunk.data));
  chunk.dtype = layer.dtype;
  chunk.begin = chunk.index * layer.chunk_size;
  chunk.flat = layer.offset + chunk.begin;
  const int64_t left = layer.numel - chunk.begin;  // negative where a sparse gradient has fewer elements
  chunk.size = static_cast<int32_t>(left < 0 ? 0 : (left < layer.chunk_size ? left : layer.chunk_size));
  return chunk;
}

template <typename T>
struct Type {
  using type = T;
};

// work(Type<T>()) for the type that a dtype stands for. On the device for layers, on the host for flat buffers.
#pragma nv_exec_check_disable
template <typename Work>
__host__ __device__ void dispatch(int32_t dtype, const Work& work) {
  switch (static_cast<c10::ScalarType>(dtype)) {
    case c10::ScalarType::Half:
      return work(Type<c10::Half>());
    case c10::ScalarType::BFloat16:
      return work(Type<c10::BFloat16>());
    case c10::ScalarType::Float:
      return work(Type<float>());
    default:
      return work(Type<double>());
  }
}

// work(Type<T>()) for the type of a layer, of those that a kernel does. float64 takes more registers, which would leave
// room for fewer blocks of all other types at a time: it has kernels of its own.
template <bool kIsDouble, typename Work>
__device__ void dispatch_kind(int32_t dtype, const Work& work) {
  if constexpr (kIsDouble) {
    work(Type<double>());
  } else if (dtype == static_cast<int32_t>(c10::ScalarType::Float)) {
    work(Type<float>());
  } else if (dtype == static_cast<int32_t>(c10::ScalarType::Half)) {
    work(Type<c10::Half>());
  } else {
    work(Type<c10::BFloat16>());
  }
}

template <bool kIsDouble>
__device__ bool is_of_kind(int32_t dtype) {
  return (dtype == static_cast<int32_t>(c10::ScalarType::Double)) == kIsDouble;
}

// float, or double when a float64 takes part.
template <typename A, typename B = A>
using Arithmetic = std::conditional_t<std::is_same_v<A, double> || std::is_same_v<B, double>, double, float>;

template <typename To, typename From>
__device__ To cast_to(From value) {
  if constexpr (std::is_same_v<To, From> || std::is_same_v<To, double> || std::is_same_v<From, float>) {
    return static_cast<To>(value);
  } else {
    // A double is rounded to float and then to half, as torch's own conversion does.
    return static_cast<To>(static_cast<float>(value));
  }
}

// The pull of an element: x + pull * (center - x), which pull 1 would round, and a NaN in x would outlive. Not for pull
// 0, at which a NaN in the center must not reach x.
template <typename X, typename Wide, typename Center>
__device__ X pulled(Wide x, Center center, Wide pull) {
  const Wide wide_center = cast_to<Wide>(center);
  const X between = cast_to<X>(x + pull * (wide_center - x));
  return pull == 1 ? cast_to<X>(center) : between;
}

// Elements of one thread, kept as the words that move them: the compiler would else take a word apart at once, and wait
// for it before the next load is under way.
template <typename T, int N>
struct Vec {
  static constexpr int kCount = N;
  static constexpr int kPerWord = sizeof(T) == 2 ? 2 : 1;

  std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t> words[(N + kPerWord - 1) / kPerWord];

  __device__ T operator[](int i) const {
    const auto bits = words[i / kPerWord] >> (i % kPerWord * 16);
    T value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
  // In order, from the first.
  __device__ void set(int i, T value) {
    std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t> bits = 0;
    std::memcpy(&bits, &value, sizeof(value));
    words[i / kPerWord] = i % kPerWord == 0 ? bits : words[i / kPerWord] | bits << 16;
  }
};

// As many as fill a word of the narrowest operand.
template <typename A, typename B = A>
constexpr int kWidth = 16 / (sizeof(A) < sizeof(B) ? sizeof(A) : sizeof(B));

inline constexpr int32_t kWord = 16;

// Elements before the first whole word.
template <typename T>
__device__ int32_t head_of(const T* data) {
  const auto misfit = static_cast<int32_t>(reinterpret_cast<uintptr_t>(data) % kWord);
  return misfit == 0 ? 0 : (kWord - misfit) / static_cast<int32_t>(sizeof(T));
}

template <typename T>
__device__ bool is_aligned(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % kWord == 0;
}

template <int N, typename T>
__device__ Vec<T, N> load(const T* from, bool aligned) {
  Vec<T, N> values;
  if constexpr (sizeof(values) % kWord == 0) {
    if (aligned) {
      uint4 words[sizeof(values) / kWord];
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(values) / kWord); ++i) {
        words[i] = load_word(reinterpret_cast<const uint4*>(from) + i);
      }
      std::memcpy(&values, words, sizeof(values));
      return values;
    }
  }
  // Neighbouring threads read neighbouring memory: the first-level cache makes whole sectors of these.
#pragma unroll
  for (int i = 0; i < N; ++i) values.set(i, from[i]);
  return values;
}

template <typename T, int N>
__device__ void store(T* to, const Vec<T, N>& values, bool aligned = true) {
  if constexpr (sizeof(values) % kWord == 0) {
    if (aligned) {
      uint4 words[sizeof(values) / kWord];
      std::memcpy(words, &values, sizeof(values));
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(values) / kWord); ++i) {
        store_word(reinterpret_cast<uint4*>(to) + i, words[i]);
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = values[i];
}

// A compile-time number as an argument.
template <int N>
struct Width {
  static constexpr int value = N;
};

// What a thread has in flight: with 700 threads a multiprocessor, the 40 KB that hide the latency of an H200's memory.
constexpr int kBatchBytes = 64;

// Deals the elements [0, size) of a chunk to the threads of a block: whole words of `anchor` in batches of some vectors
// of N elements, the rest one by one. use(values, places) gets what load(place, Width)
// gave for each place, all loads of a batch in flight before the first use; a place of -1 is beyond the end, and its
// values are zeros.
// The anchor is what is written, so that stores are whole words: a store in parts costs a pass of the second-level
// cache for each, a load in parts only some of the first.
template <int N, typename Anchor, typename Load, typename Use>
__device__ void for_each_batch(const Anchor* anchor, int32_t size, const Load& load, const Use& use) {
  using Values = decltype(load(0, Width<N>()));
  constexpr int kDepth = sizeof(Values) < kBatchBytes ? kBatchBytes / sizeof(Values) : 1;
  const int32_t head = head_of(anchor) < size ? head_of(anchor) : size;
  const int32_t vectors = (size - head) / N;
  const auto thread = static_cast<int32_t>(threadIdx.x);
  for (int32_t first = thread; first < vectors; first += kThreads * kDepth) {
    Values values[kDepth];
    int32_t places[kDepth];
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      const int32_t vector = first + i * kThreads;
      places[i] = vector < vectors ? head + vector * N : -1;
      values[i] = {};
      if (vector < vectors) values[i] = load(places[i], Width<N>());
    }
    use(values, places);
  }
  // Before and behind the vectors: less than a word and a vector, if there are any.
  for (int32_t i = thread; i < size - vectors * N; i += kThreads) {
    const int32_t place = i < head ? i : i + vectors * N;
    const decltype(load(0, Width<1>())) values[1] = {load(place, Width<1>())};
    const int32_t places[1] = {place};
    use(values, places);
  }
}

}  // namespace grawa::cuda
