#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/multi_tensor.cuh"
#include "cuda/squares.cuh"

// From the sums of threads to the norm of a layer, bitwise the same at every run: threads, warps and chunks are added
// in a fixed order, and no sum is ever an atomic one. The order depends on the size of a layer, on its dtype and on how
// its address lies to 16 bytes, not on the device's multiprocessors. A sum is a Partial for float64, else a double.
namespace grawa::cuda {

__device__ inline double from_lane(double sum, int distance) { return __shfl_xor_sync(kWholeWarp, sum, distance); }

__device__ inline Partial from_lane(const Partial& sum, int distance) {
  return {from_lane(sum.scale, distance), from_lane(sum.sum, distance)};
}

__device__ inline double norm_of(double sum) { return sqrt(sum); }
__device__ inline double norm_of(const Partial& sum) { return sum.scale * sqrt(sum.sum); }

// The sum over all threads of the block, in thread 0. Every thread must come here; between two calls, to a barrier.
template <typename Sum>
__device__ Sum add_up_block(Sum sum) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double sums[kWarps][sizeof(Sum) / sizeof(double)];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Sum other = from_lane(sum, distance);
    // Both partners must add in one order, or lanes would part in the last bit.
    sum = (threadIdx.x & distance) != 0 ? add(other, sum) : add(sum, other);
  }
  if (threadIdx.x % 32 == 0) std::memcpy(sums[threadIdx.x / 32], &sum, sizeof(sum));
  __syncthreads();
  if (threadIdx.x != 0) return sum;
  for (int warp = 1; warp < kWarps; ++warp) {
    Sum other;
    std::memcpy(&other, sums[warp], sizeof(other));
    sum = add(sum, other);
  }
  return sum;
}

// The sums of chunks come to the last block of a layer through memory, each in words that say by themselves whether
// they are there. A fence, which would say so of all at once, would hold up every block for a trip to memory.
template <typename Sum>
struct SumWords {
  static constexpr int kCount = sizeof(Sum) / sizeof(uint64_t);
  static constexpr uint64_t kNan = 0x7ff8000000000000;

  uint64_t at[kCount];

  __device__ bool is_there() const {
    bool is_there = true;
#pragma unroll
    for (const uint64_t word : at) is_there = is_there && word != kNoSum;
    return is_there;
  }
  __device__ void leave(uint64_t* to) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) store_relaxed(to + i, at[i] == kNoSum ? kNan : at[i]);
  }
  __device__ static void clear(uint64_t* place) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) store_relaxed(place + i, kNoSum);
  }
  __device__ static SumWords look(const uint64_t* place) {
    SumWords words;
#pragma unroll
    for (int i = 0; i < kCount; ++i) words.at[i] = load_relaxed(place + i);
    return words;
  }
};

// One thread's part of a layer's sums, which are taken out of memory: the next launch finds none there.
template <typename Sum>
__device__ Sum take_sums(uint64_t* sums, int32_t count) {
  using Words = SumWords<Sum>;
  constexpr int kDepth = 12 / Words::kCount;  // in flight at once
  Sum total = {};
  for (auto first = static_cast<int32_t>(threadIdx.x); first < count; first += kThreads * kDepth) {
    uint64_t* place = sums + first * Words::kCount;
    Words found[kDepth];
    bool are_there = false;
    while (!are_there) {
      are_there = true;
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        found[i] = {};
        if (first + i * kThreads < count) found[i] = Words::look(place + i * kThreads * Words::kCount);
      }
#pragma unroll
      for (int i = 0; i < kDepth; ++i) are_there = are_there && found[i].is_there();
    }
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      if (first + i * kThreads >= count) break;
      Words::clear(place + i * kThreads * Words::kCount);
      Sum sum;
      std::memcpy(&sum, &found[i], sizeof(sum));
      total = add(total, sum);
    }
  }
  return total;
}

// Leaves the sum of a chunk, which thread 0 has, for the last of the layer's blocks that comes here: is it this one?
template <typename Sum>
__device__ bool leave_sum(const View& view, const Chunk& chunk, const Sum& sum) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    SumWords<Sum> words;
    std::memcpy(&words, &sum, sizeof(words));
    words.leave(view.sums + blockIdx.x * SumWords<Sum>::kCount);
    const auto last = static_cast<unsigned>(chunk.count - 1);
    is_last = count_relaxed(&view.layers[chunk.layer].chunks_done, last) == last;
  }
  __syncthreads();
  return is_last;
}

// From the threads' parts of a chunk to finish(norm of its layer), called by thread 0 of whichever block is the last of
// the layer to come here: it adds up all chunks' sums, in chunk order. So norms are one launch, and the pass that adds
// up costs no second trip through the launch queue.
template <typename Sum, typename Finish>
__device__ void finish_layer(const View& view, const Chunk& chunk, const Sum& thread_sum, const Finish& finish) {
  Sum sum = add_up_block(thread_sum);
  if (chunk.count > 1) {
    if (!leave_sum(view, chunk, sum)) return;
    sum = add_up_block(take_sums<Sum>(view.sums + chunk.first * SumWords<Sum>::kCount, chunk.count));
  }
  if (threadIdx.x == 0) finish(norm_of(sum));
}

template <typename Sum>
__device__ void finish_norm(const View& view, const Chunk& chunk, const Sum& thread_sum, const Scalars& norms) {
  finish_layer(view, chunk, thread_sum, [&](double norm) { norms.write(chunk.layer, norm); });
}

}  // namespace grawa::cuda
