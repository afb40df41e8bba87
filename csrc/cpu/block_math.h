#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

#include "span.h"

// Loops over one block of elements, compiled for several instruction sets and chosen when the library loads. Other
// types than the arithmetic type (float, or double when a float64 takes part) go through a scratch of one block.
namespace grawa::cpu {

constexpr int64_t kBlock = 1024;  // float scratches of three operands stay in the first-level cache

void convert(void* to, at::ScalarType to_dtype, const void* from, at::ScalarType from_dtype, int64_t size);

// Of any finite values, however large or small, to 2^-22 of the sum; Inf and NaN go through. Fast where the root mean
// square is between 2^-49 and 2^60 or so. Any size: longer calls cost less per element.
double sum_squares(const float* x, int64_t size);
double sum_squares(const c10::BFloat16* x, int64_t size);
// The fast part of it, taken in runs: the same bits in whatever runs, as long as all but the last are of whole pieces.
struct FloatSquares {
  static constexpr int64_t kPiece = 128;

  double total() const;

  double wide[16] = {};
  double rest = 0;
};
void add_squares(FloatSquares& squares, const float* x, int64_t size);
// Whether the total is as exact as sum_squares says; else that is needed.
bool holds_float_sums(double total, int64_t size);
// To 1.5 · 2^-22: the differences are rounded to float, too.
double sum_squared_differences(const float* x, const float* y, int64_t size);
double sum_squares(const double* x, int64_t size);  // in double, and within its range

double max_magnitude(const double* x, int64_t size);  // NaN is ignored
double sum_scaled_squares(const double* x, double scale, int64_t size);

// out may be any of the operands.
void scale(float* out, const float* x, float weight, int64_t size);
void scale(double* out, const double* x, double weight, int64_t size);
void scale_difference(float* out, const float* x, const float* base, float weight, int64_t size);
void scale_difference(double* out, const double* x, const double* base, double weight, int64_t size);
void subtract(double* out, const double* x, const double* y, int64_t size);
void move_toward(float* out, const float* x, const float* center, float pull, int64_t size);
void move_toward(double* out, const double* x, const double* center, double pull, int64_t size);

inline void* at_element(const Span& span, int64_t element) {
  return static_cast<char*>(span.data) + element * static_cast<int64_t>(c10::elementSize(span.dtype));
}

// To look up where a page lies takes long, in a virtual machine more so, and the processor starts on the next page only
// when it gets there. So one line is asked for of the page that comes 64 KB later. Beyond the end of a layer that is in
// vain, and harmless.
inline void look_ahead(const void* block, int64_t size) {
  if (size == kBlock) __builtin_prefetch(static_cast<const char*>(block) + 64 * 1024);
}

template <typename Arithmetic>
bool is_type(const Span& span) {
  return span.dtype == c10::CppTypeToScalarType<Arithmetic>::value;
}

// The elements from `begin` in the arithmetic type: in place where they are of that type, else in the scratch.
template <typename Arithmetic>
const Arithmetic* load(const Span& span, int64_t begin, int64_t size, Arithmetic* scratch) {
  const void* data = at_element(span, begin);
  look_ahead(data, size);
  if (is_type<Arithmetic>(span)) return static_cast<const Arithmetic*>(data);
  convert(scratch, c10::CppTypeToScalarType<Arithmetic>::value, data, span.dtype, size);
  return scratch;
}

}  // namespace grawa::cpu
