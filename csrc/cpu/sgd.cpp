#include "cpu/step_math.h"

namespace grawa::cpu {
namespace {

enum class Momentum { kNone, kPlain, kNesterov };

// What is 0 is left out, not multiplied by: 0 · Inf is NaN.
template <Momentum kMomentum, bool kDecay, bool kPull, typename T>
GRAWA_INLINE void sgd_loop(const StepBlock<T>& block, const SgdFactors<T>& factors) {
  T *const param = block.param, *const momentum = block.momentum;
  const T *const grad = block.grad, *const center = block.center;
  const SgdFactors<T> f = factors;
  for_each_element(block, [=](int64_t i) {
    const T old = param[i];
    T change = f.sign * grad[i];
    if constexpr (kDecay) change += f.weight_decay * old;
    if constexpr (kMomentum != Momentum::kNone) {
      const T velocity = f.momentum * momentum[i] + f.undamped * change;
      momentum[i] = velocity;
      change = kMomentum == Momentum::kNesterov ? change + f.momentum * velocity : velocity;
    }
    const T updated = old - f.lr * change;
    param[i] = kPull ? pulled(updated, center[i], f.pull) : updated;
  });
}

template <Momentum kMomentum, typename T>
GRAWA_INLINE void sgd_with_momentum(const StepBlock<T>& block, const SgdFactors<T>& factors) {
  const bool has_pull = block.center != nullptr;
  if (factors.weight_decay != 0) {
    has_pull ? sgd_loop<kMomentum, true, true>(block, factors) : sgd_loop<kMomentum, true, false>(block, factors);
  } else {
    has_pull ? sgd_loop<kMomentum, false, true>(block, factors) : sgd_loop<kMomentum, false, false>(block, factors);
  }
}

template <typename T>
GRAWA_INLINE void sgd(const StepBlock<T>& block, const SgdFactors<T>& factors) {
  if (block.momentum == nullptr) return sgd_with_momentum<Momentum::kNone>(block, factors);
  if (factors.nesterov) return sgd_with_momentum<Momentum::kNesterov>(block, factors);
  sgd_with_momentum<Momentum::kPlain>(block, factors);
}

}  // namespace

template <typename T>
SgdFactors<T>::SgdFactors(const SgdRule& rule, double lr, double pull)
    : lr(lr),
      momentum(rule.momentum),
      undamped(1 - rule.dampening),
      weight_decay(rule.weight_decay),
      sign(rule.maximize ? -1 : 1),
      pull(pull),
      nesterov(rule.nesterov) {}

template struct SgdFactors<float>;
template struct SgdFactors<double>;

GRAWA_CLONES void update(const StepBlock<float>& block, const SgdFactors<float>& factors) { sgd(block, factors); }
GRAWA_CLONES void update(const StepBlock<double>& block, const SgdFactors<double>& factors) { sgd(block, factors); }

}  // namespace grawa::cpu
