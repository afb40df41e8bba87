#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/block_math.h"
#include "cpu/clones.h"
#include "step.h"

// The updates of a block of elements in the arithmetic type: float, or double for float64.
namespace grawa::cpu {

template <typename T>
struct StepBlock {
  T* param;
  const T* grad;
  T* momentum;      // nullptr: SGD without momentum
  T* square;        // AdamW
  const T* center;  // nullptr: no pull
  int64_t size;
  FloatSquares* grad_squares;  // those of the gradients are added; nullptr: not wanted, or of doubles
};

// Calls update(i) for every element, and adds the squares of the gradients a few cache lines before it, no more: so the
// gradients come from memory beside the other operands. Squares of a whole chunk beforehand take their own time, since
// one stream alone does not use the memory up. Operands never share memory, which the compiler cannot know.
template <typename T, typename Update>
GRAWA_INLINE void for_each_element(const StepBlock<T>& block, Update update) {
  for (int64_t begin = 0; begin < block.size; begin += FloatSquares::kPiece) {
    const int64_t end = std::min(begin + FloatSquares::kPiece, block.size);
    if constexpr (std::is_same_v<T, float>) {
      if (block.grad_squares != nullptr) add_squares(*block.grad_squares, block.grad + begin, end - begin);
    }
#pragma GCC ivdep
    for (int64_t i = begin; i < end; ++i) update(i);
  }
}

// Computed in double, then rounded once.
template <typename T>
struct SgdFactors {
  SgdFactors(const SgdRule& rule, double lr, double pull);

  T lr;
  T momentum;
  T undamped;  // 1 - dampening
  T weight_decay;
  T sign;  // -1: maximize
  T pull;
  bool nesterov;
};

template <typename T>
struct AdamwFactors {
  AdamwFactors(const AdamwRule& rule, double lr, double pull, double bias1, double bias2_root);

  T kept;  // of the parameter, by the weight decay
  T beta1;
  T new1;  // 1 - beta1
  T beta2;
  T new2;
  T step_size;
  T root_scale;  // 1 / sqrt(1 - beta2^step)
  T eps;
  T sign;
  T pull;
};

template <typename T>
GRAWA_INLINE T pulled(T x, T center, T pull) {
  return x + pull * (center - x);
}

void update(const StepBlock<float>& block, const SgdFactors<float>& factors);
void update(const StepBlock<double>& block, const SgdFactors<double>& factors);
void update(const StepBlock<float>& block, const AdamwFactors<float>& factors);
void update(const StepBlock<double>& block, const AdamwFactors<double>& factors);

}  // namespace grawa::cpu
