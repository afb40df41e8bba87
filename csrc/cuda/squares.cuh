#pragma once

#include <cstdint>

#include "cuda/multi_tensor.cuh"

// A thread's sum of squares, right to float64's precision, whatever the range of the elements.
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

// One thread's part of a sum of squares. Its value depends on which elements a thread adds, and in which order, not on
// how many of them it adds at a time: all kernels that go through a layer in one order have the same sum to the last
// bit. So each product is said to be part of an fma or not, which the compiler would else choose for each kernel.
template <typename T>
struct SquareSum;

struct DoubleSum {
  double sum = 0;

  template <int N, typename Element>
  __device__ void add(const Element& element) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const double x = widen(element(i));
      sum = fma(x, x, sum);
    }
  }
  __device__ double total() const { return sum; }
};

// Two, as one would wait for each of its additions to finish before it starts the next.
struct PairSums {
  PairSum even;
  PairSum odd;
  DoubleSum others;

  template <int N, typename Element>
  __device__ void add(const Element& element) {
    PairSum next_even = even, next_odd = odd;
#pragma unroll
    for (int i = 0; i < N; ++i) (i % 2 == 0 ? next_even : next_odd).add_square(split(element(i)));
    if (next_even.is_precise() && next_odd.is_precise()) {
      even = next_even;
      odd = next_odd;
    } else {
      others.add<N>(element);
    }
  }
  __device__ double total() const { return others.total() + (even.value() + odd.value()); }
};

template <>
struct SquareSum<float> : std::conditional_t<kHasFastDouble, DoubleSum, PairSums> {};

__device__ inline double add(double a, double b) { return a + b; }

__device__ inline Partial add(const Partial& a, const Partial& b) {
  if (__double_as_longlong(a.scale) == __double_as_longlong(b.scale)) return {a.scale, a.sum + b.sum};
  if (a.sum == 0) return b;
  if (b.sum == 0) return a;
  if (!isfinite(a.sum) || !isfinite(b.sum)) return {1, a.sum + b.sum};
  const double scale = fmax(a.scale, b.scale);
  const double a_ratio = a.scale / scale, b_ratio = b.scale / scale;  // one of them is 1
  return {scale, fma(a_ratio * a_ratio, a.sum, b_ratio * b_ratio * b.sum)};
}

// The range of a double suffices for the squares of any narrower type, but not for its own.
template <>
struct SquareSum<double> {
  Partial sum;

  template <int N, typename Element>
  __device__ void add(const Element& element) {
    sum = cuda::add(sum, squares_of<N>([&](int i) { return widen(element(i)); }));
  }
  __device__ Partial total() const { return sum; }

 private:
  template <int N, typename Element>
  __device__ static double scaled(const Element& element, double scale) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fma(element(i) / scale, element(i) / scale, sum);
    return sum;
  }

  template <int N, typename Element>
  __device__ static Partial squares_of(const Element& element) {
    double sum = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fma(element(i), element(i), sum);
    // Squares in this range add up, over any number of chunks, without leaving the range of a double.
    if ((sum > 1e-250 && sum < 1e250) || isnan(sum)) return {1, sum};
    double largest = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) largest = fmax(largest, fabs(element(i)));
    if (largest == 0 || isinf(largest)) return {1, sum};
    return {largest, scaled<N>(element, largest)};
  }
};

}  // namespace grawa::cuda
