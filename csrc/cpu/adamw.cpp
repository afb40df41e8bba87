#include <cmath>

#include "cpu/step_math.h"

namespace grawa::cpu {
namespace {

// kRecent: beta1 below a half. torch's lerp then starts from the gradient, so that beta1 = 0 gives exactly that.
template <bool kRecent, bool kPull, typename T>
GRAWA_INLINE void adamw_loop(const StepBlock<T>& block, const AdamwFactors<T>& factors) {
  T *const param = block.param, *const momentum = block.momentum, *const square = block.square;
  const T *const grad = block.grad, *const center = block.center;
  const AdamwFactors<T> f = factors;
  for_each_element(block, [=](int64_t i) {
    const T change = f.sign * grad[i];
    const T old = momentum[i];
    const T mean = kRecent ? change - f.beta1 * (change - old) : old + f.new1 * (change - old);
    const T mean_square = f.beta2 * square[i] + f.new2 * (change * change);
    momentum[i] = mean;
    square[i] = mean_square;
    const T root = std::sqrt(mean_square) * f.root_scale + f.eps;
    const T updated = f.kept * param[i] - f.step_size * (mean / root);
    param[i] = kPull ? pulled(updated, center[i], f.pull) : updated;
  });
}

template <bool kRecent, typename T>
GRAWA_INLINE void adamw_from(const StepBlock<T>& block, const AdamwFactors<T>& factors) {
  block.center != nullptr ? adamw_loop<kRecent, true>(block, factors) : adamw_loop<kRecent, false>(block, factors);
}

template <typename T>
GRAWA_INLINE void adamw(const StepBlock<T>& block, const AdamwFactors<T>& factors) {
  factors.beta1 < T(0.5) ? adamw_from<true>(block, factors) : adamw_from<false>(block, factors);
}

}  // namespace

template <typename T>
AdamwFactors<T>::AdamwFactors(const AdamwRule& rule, double lr, double pull, double bias1, double bias2_root)
    : kept(1 - lr * rule.weight_decay),
      beta1(rule.beta1),
      new1(1 - rule.beta1),
      beta2(rule.beta2),
      new2(1 - rule.beta2),
      step_size(lr / bias1),
      root_scale(1 / bias2_root),
      eps(rule.eps),
      sign(rule.maximize ? -1 : 1),
      pull(pull) {}

template struct AdamwFactors<float>;
template struct AdamwFactors<double>;

GRAWA_CLONES void update(const StepBlock<float>& block, const AdamwFactors<float>& factors) { adamw(block, factors); }
GRAWA_CLONES void update(const StepBlock<double>& block, const AdamwFactors<double>& factors) { adamw(block, factors); }

}  // namespace grawa::cpu
