#include "cpu/block_math.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/clones.h"

namespace grawa::cpu {
namespace {

// Operands may be the same memory, element for element: a dependence that the compiler would otherwise test for, and
// answer with a scalar loop.
template <typename Out, typename Element>
GRAWA_INLINE void map(Out* out, int64_t size, Element element) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) out[i] = element(i);
}

template <typename To, typename From>
GRAWA_INLINE void convert_loop(To* to, const From* from, int64_t size) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, size * sizeof(To));
  } else if constexpr (std::is_same_v<To, double> || std::is_same_v<From, double>) {
    // Rounding a double to float and then to half rounds twice, as torch's own conversion does.
    map(to, size, [=](int64_t i) { return static_cast<To>(from[i]); });
  } else {
    map(to, size, [=](int64_t i) { return static_cast<To>(static_cast<float>(from[i])); });
  }
}

template <typename To>
GRAWA_INLINE void convert_to(To* to, const void* from, at::ScalarType from_dtype, int64_t size) {
  switch (from_dtype) {
    case at::kHalf:
      return convert_loop(to, static_cast<const c10::Half*>(from), size);
    case at::kBFloat16:
      return convert_loop(to, static_cast<const c10::BFloat16*>(from), size);
    case at::kFloat:
      return convert_loop(to, static_cast<const float*>(from), size);
    default:
      return convert_loop(to, static_cast<const double*>(from), size);
  }
}

typedef double Doubles __attribute__((vector_size(4 * sizeof(double))));  // wider ones spill without AVX-512

// One running sum would wait for each addition to finish before it starts the next.
template <typename Value>
GRAWA_INLINE double sum_of(int64_t size, Value value) {
  constexpr int64_t kVector = 4;
  constexpr int64_t kVectors = 8;
  Doubles sums[kVectors] = {};
  int64_t i = 0;
  for (; i + kVectors * kVector <= size; i += kVectors * kVector) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < kVectors; ++v) {
      Doubles values;
      for (int64_t lane = 0; lane < kVector; ++lane) values[lane] = value(i + v * kVector + lane);
      sums[v] += values;
    }
  }
  const Doubles total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  double sum = (total[0] + total[1]) + (total[2] + total[3]);
  for (; i < size; ++i) sum += value(i);
  return sum;
}

GRAWA_INLINE double square(double x) { return x * x; }

typedef float Floats __attribute__((vector_size(16 * sizeof(float))));

// 16 running sums in double.
struct WideSums {
  Doubles sums[4] = {};

  GRAWA_INLINE void add(const Floats& x) {
#pragma GCC unroll 4
    for (int64_t part = 0; part < 4; ++part) {
      Doubles values;
      widen(x, part, values);
      sums[part] += values;
    }
  }

  GRAWA_INLINE void add_squares(const Floats& x) {
#pragma GCC unroll 4
    for (int64_t part = 0; part < 4; ++part) {
      Doubles values;
      widen(x, part, values);
      sums[part] += values * values;
    }
  }

  GRAWA_INLINE double total() const {
    const Doubles sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

 private:
  static GRAWA_INLINE void widen(const Floats& x, int64_t part, Doubles& values) {
    for (int64_t lane = 0; lane < 4; ++lane) values[lane] = x[4 * part + lane];
  }
};

// Squares of floats in float, each going through at most four roundings before it joins a sum in double: two for the
// sum of a pair of squares, two for that of four pairs. All terms are positive, so the result errs by less than
// 4 · 2^-24 of itself, as long as `holds_float_sums`.
template <typename Value>
GRAWA_INLINE void add_float_squares(WideSums& wide, double& sum_of_rest, int64_t size, Value value) {
  constexpr int64_t kWidth = 16;
  constexpr int64_t kPairs = FloatSquares::kPiece / (2 * kWidth);
  int64_t i = 0;
  for (; i + FloatSquares::kPiece <= size; i += FloatSquares::kPiece) {
    Floats sums[kPairs];
    // Memory is read in order: otherwise the processor does not see what to fetch ahead.
#pragma GCC unroll 4
    for (int64_t pair = 0; pair < kPairs; ++pair) {
      Floats first, second;
      for (int64_t lane = 0; lane < kWidth; ++lane) first[lane] = value(i + 2 * pair * kWidth + lane);
      for (int64_t lane = 0; lane < kWidth; ++lane) second[lane] = value(i + (2 * pair + 1) * kWidth + lane);
      sums[pair] = first * first + second * second;
    }
    wide.add((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  for (; i + kWidth <= size; i += kWidth) {
    Floats rest;
    for (int64_t lane = 0; lane < kWidth; ++lane) rest[lane] = value(i + lane);
    wide.add_squares(rest);
  }
  for (; i < size; ++i) sum_of_rest += square(value(i));
}

template <typename Value>
GRAWA_INLINE double sum_of_float_squares(int64_t size, Value value) {
  WideSums wide;
  double rest = 0;
  add_float_squares(wide, rest, size, value);
  return wide.total() + rest;
}

}  // namespace

double FloatSquares::total() const {
  WideSums sums;
  std::memcpy(sums.sums, wide, sizeof(wide));
  return sums.total() + rest;
}

// A result below 2^-126 errs by up to that much where the processor flushes such numbers to zero, and there are fewer
// than two results per element: below 2^-27 of this sum. A square, or a sum of eight, beyond the range is infinite.
bool holds_float_sums(double total, int64_t size) {
  return total >= static_cast<double>(size) * 0x1p-98 && total < std::numeric_limits<double>::infinity();
}

GRAWA_CLONES void convert(void* to, at::ScalarType to_dtype, const void* from, at::ScalarType from_dtype,
                          int64_t size) {
  switch (to_dtype) {
    case at::kHalf:
      return convert_to(static_cast<c10::Half*>(to), from, from_dtype, size);
    case at::kBFloat16:
      return convert_to(static_cast<c10::BFloat16*>(to), from, from_dtype, size);
    case at::kFloat:
      return convert_to(static_cast<float*>(to), from, from_dtype, size);
    default:
      return convert_to(static_cast<double*>(to), from, from_dtype, size);
  }
}

GRAWA_CLONES double sum_squares(const float* x, int64_t size) {
  const double sum = sum_of_float_squares(size, [=](int64_t i) { return x[i]; });
  if (holds_float_sums(sum, size)) return sum;
  return sum_of(size, [=](int64_t i) { return square(x[i]); });
}

GRAWA_CLONES double sum_squares(const c10::BFloat16* x, int64_t size) {
  const double sum = sum_of_float_squares(size, [=](int64_t i) { return static_cast<float>(x[i]); });
  if (holds_float_sums(sum, size)) return sum;
  return sum_of(size, [=](int64_t i) { return square(static_cast<float>(x[i])); });
}

GRAWA_CLONES void add_squares(FloatSquares& squares, const float* x, int64_t size) {
  WideSums wide;
  std::memcpy(wide.sums, squares.wide, sizeof(squares.wide));
  add_float_squares(wide, squares.rest, size, [=](int64_t i) { return x[i]; });
  std::memcpy(squares.wide, wide.sums, sizeof(squares.wide));
}

GRAWA_CLONES double sum_squares(const double* x, int64_t size) {
  return sum_of(size, [=](int64_t i) { return square(x[i]); });
}

GRAWA_CLONES double sum_squared_differences(const float* x, const float* y, int64_t size) {
  const double sum = sum_of_float_squares(size, [=](int64_t i) { return x[i] - y[i]; });
  if (holds_float_sums(sum, size)) return sum;
  return sum_of(size, [=](int64_t i) { return square(static_cast<double>(x[i]) - static_cast<double>(y[i])); });
}

double max_magnitude(const double* x, int64_t size) {
  double result = 0;
  for (int64_t i = 0; i < size; ++i) result = std::fmax(result, std::fabs(x[i]));
  return result;
}

double sum_scaled_squares(const double* x, double scale, int64_t size) {
  return sum_of(size, [=](int64_t i) { return square(x[i] / scale); });
}

GRAWA_CLONES void scale(float* out, const float* x, float weight, int64_t size) {
  map(out, size, [=](int64_t i) { return weight * x[i]; });
}

GRAWA_CLONES void scale(double* out, const double* x, double weight, int64_t size) {
  map(out, size, [=](int64_t i) { return weight * x[i]; });
}

GRAWA_CLONES void scale_difference(float* out, const float* x, const float* base, float weight, int64_t size) {
  map(out, size, [=](int64_t i) { return weight * (x[i] - base[i]); });
}

GRAWA_CLONES void scale_difference(double* out, const double* x, const double* base, double weight, int64_t size) {
  map(out, size, [=](int64_t i) { return weight * (x[i] - base[i]); });
}

GRAWA_CLONES void subtract(double* out, const double* x, const double* y, int64_t size) {
  map(out, size, [=](int64_t i) { return x[i] - y[i]; });
}

GRAWA_CLONES void move_toward(float* out, const float* x, const float* center, float pull, int64_t size) {
  map(out, size, [=](int64_t i) { return x[i] + pull * (center[i] - x[i]); });
}

GRAWA_CLONES void move_toward(double* out, const double* x, const double* center, double pull, int64_t size) {
  map(out, size, [=](int64_t i) { return x[i] + pull * (center[i] - x[i]); });
}

}  // namespace grawa::cpu
