#pragma once

#include <cstdint>

#include "cuda/multi_tensor.cuh"

// Sums of squares that are right to float64's precision, whatever the range of the elements, and bitwise the same at
// every run: threads, warps and chunks are added in a fixed order, and no sum is ever an atomic one. The order depends
// on the size of a layer, on its dtype and on how its address lies to 16 bytes, not on the device's multiprocessors.
namespace grawa::cuda {

// Squares of float32 and narrower are added in float64, whose range none of them leaves. That takes a conversion and a
// multiply-add per element. The data-centre cards do 16 conversions a cycle and multiprocessor (CUDA guide, arithmetic
// throughput), where memory brings an H200 5 float32 or 10 bfloat16 elements. All others do 2, and a pass would take up
// to 4 times as long as its bytes: they add pairs of float32 (a sum and what its rounding left, ten float32 operations
// of 128 a cycle), and do again in float64 the few batches in which a square leaves float32's range.
#if defined(__CUDA_ARCH__)
constexpr bool kHasFastDouble =
    __CUDA_ARCH__ == 700 || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000;
#elif defined(GRAWA_SLOW_DOUBLE)  // for tests on the host
constexpr bool kHasFastDouble = false;
#else
constexpr bool kHasFastDouble = true;
#endif

// A difference that is not rounded before it is squared.
template <typename T>
struct Gap {
  T to;
  T from;
};

__device__ inline double widen(float x) { return x; }
__device__ inline double widen(double x) { return x; }
template <typename T>
__device__ double widen(const Gap<T>& gap) {
  return static_cast<double>(gap.to) - static_cast<double>(gap.from);
}

// One running sum would wait for each addition to finish before it starts the next.
constexpr int kSums = 4;

template <int N, typename Element>
__device__ double sum_of(const Element& element) {
  double sums[kSums] = {};
#pragma unroll
  for (int i = 0; i < N; ++i) sums[i % kSums] += element(i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

__device__ inline double square(double x) { return x * x; }

// high + low, without an error.
struct Pair {
  float high;
  float low;
};

// Knuth's sum: no operand need be the larger one.
__device__ inline Pair add_exactly(float a, float b) {
  const float sum = a + b;
  const float b_part = sum - a;
  return {sum, (a - (sum - b_part)) + (b - b_part)};
}

__device__ inline Pair split(float x) { return {x, 0}; }
__device__ inline Pair split(const Gap<float>& gap) { return add_exactly(gap.to, -gap.from); }

struct PairSum {
  Pair total = {0, 0};
  float largest = 0;

  __device__ void add_square(const Pair& x) {
    const float square = x.high * x.high;
    const float rounded_off = fmaf(2 * x.high, x.low, fmaf(x.high, x.high, -square));
    const Pair sum = add_exactly(total.high, square);
    total = {sum.high, total.low + (sum.low + rounded_off)};
    largest = fmaxf(largest, fabsf(x.high));
  }
  // What squares below the range have lost is less than 2^-40 of a sum in these bounds.
  __device__ bool is_precise() const {
    return (total.high > 0x1p-100f && total.high < 0x1p120f) || (largest == 0 && total.high == 0);
  }
  __device__ double value() const { return static_cast<double>(total.high) + static_cast<double>(total.low); }
};

// Of N elements in registers, each a float or a gap of floats.
template <int N, typename Element>
__device__ double sum_float_squares(const Element& element) {
  if constexpr (!kHasFastDouble) {
    PairSum even, odd;
#pragma unroll
    for (int i = 0; i < N; ++i) (i % 2 == 0 ? even : odd).add_square(split(element(i)));
    if (even.is_precise() && odd.is_precise()) return even.value() + odd.value();
  }
  return sum_of<N>([&](int i) { return square(widen(element(i))); });
}

__device__ inline bool is_same_scale(const Partial& a, const Partial& b) {
  return __double_as_longlong(a.scale) == __double_as_longlong(b.scale);
}

__device__ inline Partial add(const Partial& a, const Partial& b) {
  if (is_same_scale(a, b)) return {a.scale, a.sum + b.sum};
  if (a.sum == 0) return b;
  if (b.sum == 0) return a;
  if (!isfinite(a.sum) || !isfinite(b.sum)) return {1, a.sum + b.sum};
  const double scale = fmax(a.scale, b.scale);
  return {scale, square(a.scale / scale) * a.sum + square(b.scale / scale) * b.sum};
}

// The range of a double suffices for the squares of any narrower type, but not for its own.
template <int N, typename Element>
__device__ Partial sum_double_squares(const Element& element) {
  const double sum = sum_of<N>([&](int i) { return square(widen(element(i))); });
  // Squares in this range add up, over any number of chunks, without leaving the range of a double.
  if ((sum > 1e-250 && sum < 1e250) || isnan(sum)) return {1, sum};
  double largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) largest = fmax(largest, fabs(widen(element(i))));
  if (largest == 0 || isinf(largest)) return {1, sum};
  return {largest, sum_of<N>([&](int i) { return square(widen(element(i)) / largest); })};
}

// One thread's part of a chunk, in batches of N elements.
template <typename T>
struct SquareSum;

template <>
struct SquareSum<float> {
  double sum = 0;

  template <int N, typename Element>
  __device__ void add_batch(const Element& element) {
    sum += sum_float_squares<N>(element);
  }
  __device__ Partial partial() const { return {1, sum}; }
};

template <>
struct SquareSum<double> {
  Partial total;

  template <int N, typename Element>
  __device__ void add_batch(const Element& element) {
    total = add(total, sum_double_squares<N>(element));
  }
  __device__ Partial partial() const { return total; }
};

// The sum over all threads of the block, in thread 0. Every thread must come here.
__device__ inline Partial add_up_block(Partial partial) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double scales[kWarps];
  __shared__ double sums[kWarps];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const double scale = __shfl_xor_sync(kWholeWarp, partial.scale, distance);
    const double sum = __shfl_xor_sync(kWholeWarp, partial.sum, distance);
    // Both partners must add in one order, or lanes would part in the last bit.
    const bool is_upper = (threadIdx.x & distance) != 0;
    const Partial other{scale, sum};
    partial = is_upper ? add(other, partial) : add(partial, other);
  }
  __syncthreads();  // a call before this one may still be reading
  if (threadIdx.x % 32 == 0) {
    scales[threadIdx.x / 32] = partial.scale;
    sums[threadIdx.x / 32] = partial.sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) partial = add(partial, {scales[warp], sums[warp]});
  }
  return partial;
}

__device__ inline double norm_of(const Partial& partial) { return partial.scale * sqrt(partial.sum); }

// From the threads' parts of a chunk to finish(norm of its layer), called by one thread of whichever block is the last
// of the layer to come here: it finds all chunks' sums in memory and adds them in chunk order. So norms are one launch,
// and the pass that adds up costs no second trip through the launch queue. Whatever the layer's other blocks have read
// before they came here may then be overwritten.
template <typename Finish>
__device__ void finish_layer(const View& view, const Chunk& chunk, const Partial& thread_partial,
                             const Finish& finish) {
  const Partial chunk_sum = add_up_block(thread_partial);
  if (chunk.count == 1) {
    if (threadIdx.x == 0) finish(norm_of(chunk_sum));
    return;
  }
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    view.partials[blockIdx.x] = chunk_sum;
    __threadfence();
    const unsigned last = static_cast<unsigned>(chunk.count - 1);
    is_last = atomicInc(&view.layers[chunk.layer].chunks_done, last) == last;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  const Partial* partials = view.partials + view.first_chunk[chunk.layer];
  Partial partial;
  for (int64_t i = threadIdx.x; i < chunk.count; i += kThreads) {
    // Past the first-level cache, which other multiprocessors' writes do not reach.
    partial = add(partial, {__ldcg(&partials[i].scale), __ldcg(&partials[i].sum)});
  }
  partial = add_up_block(partial);
  if (threadIdx.x == 0) finish(norm_of(partial));
}

__device__ inline void finish_norm(const View& view, const Chunk& chunk, const Partial& thread_partial,
                                   const Scalars& norms) {
  finish_layer(view, chunk, thread_partial, [&](double norm) { norms.write(chunk.layer, norm); });
}

}  // namespace grawa::cuda
