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

// Leaves the sum of a chunk, which thread 0 has, for the last of the layer's blocks that comes here.
template <typename Sum>
__device__ bool is_last_block(const View& view, const Chunk& chunk, const Sum& chunk_sum) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    static_cast<Sum*>(view.sums)[blockIdx.x] = chunk_sum;
    const auto last = static_cast<unsigned>(chunk.count - 1);
    is_last = release_and_count(&view.layers[chunk.layer].chunks_done, last) == last;
    if (is_last) acquire();
  }
  __syncthreads();
  return is_last;
}

// From the threads' parts of a chunk to finish(norm of its layer), called by one thread of whichever block is the last
// of the layer to come here: it finds all chunks' sums in memory and adds them in chunk order. So norms are one launch,
// and the pass that adds up costs no second trip through the launch queue. Whatever the layer's other blocks have read
// before they came here may then be overwritten.
template <typename Sum, typename Finish>
__device__ void finish_layer(const View& view, const Chunk& chunk, const Sum& thread_sum, const Finish& finish) {
  Sum sum = add_up_block(thread_sum);
  if (chunk.count > 1) {
    if (!is_last_block(view, chunk, sum)) return;
    const Sum* sums = static_cast<const Sum*>(view.sums) + view.first_chunk[chunk.layer];
    sum = Sum();
    for (int64_t i = threadIdx.x; i < chunk.count; i += kThreads) sum = add(sum, sums[i]);
    sum = add_up_block(sum);
  }
  if (threadIdx.x == 0) finish(norm_of(sum));
}

template <typename Sum>
__device__ void finish_norm(const View& view, const Chunk& chunk, const Sum& thread_sum, const Scalars& norms) {
  finish_layer(view, chunk, thread_sum, [&](double norm) { norms.write(chunk.layer, norm); });
}

}  // namespace grawa::cuda
