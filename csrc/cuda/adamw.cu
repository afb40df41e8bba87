// The local step of AdamW in one launch: x, the gradient, both averages and the center read once, x and the averages
// written once. 32 bytes per element of float32 with a pull, 16 for half types; without one 28 and 14. At the 4.3 TB/s
// of a copy on an H200 the floor is 186 us for 100 MB of float32 parameters.
#include "cuda/step.cuh"

namespace grawa::cuda {
namespace {

struct Adamw {
  using Rule = AdamwRule;
  static constexpr int kStates = 2;  // exp_avg, exp_avg_sq
  static constexpr int kBlocks = 3;

  struct Numbers {
    double kept;
    double step_size;
    double root_scale;
  };

  // Powers and quotients in double are a microsecond, and on most cards most of what a multiprocessor can do of them:
  // one thread of the block computes each. Every thread must come here.
  __device__ static Numbers numbers(const StepSettings<AdamwRule>& settings, double lr, const StepNumber& count) {
    __shared__ double shared[2];
    if (threadIdx.x < 2) {
      const bool is_first = threadIdx.x == 0;
      double bias = is_first ? settings.bias1 : settings.bias2_root;
      if (count.data != nullptr) {
        bias = 1 - pow(is_first ? settings.rule.beta1 : settings.rule.beta2, count.read() + 1);
        if (!is_first) bias = sqrt(bias);
      }
      shared[threadIdx.x] = (is_first ? lr : 1) / bias;
    }
    __syncthreads();
    return {1 - lr * settings.rule.weight_decay, shared[0], shared[1]};
  }

  // Computed in double, then rounded once.
  template <typename T>
  struct Factors {
    __device__ Factors(const AdamwRule& rule, const Numbers& numbers)
        : kept(static_cast<T>(numbers.kept)),
          beta1(static_cast<T>(rule.beta1)),
          new1(static_cast<T>(1 - rule.beta1)),
          beta2(static_cast<T>(rule.beta2)),
          new2(static_cast<T>(1 - rule.beta2)),
          step_size(static_cast<T>(numbers.step_size)),
          root_scale(static_cast<T>(numbers.root_scale)),
          eps(static_cast<T>(rule.eps)),
          sign(rule.maximize ? -1 : 1) {}

    T kept;  // of the parameter, by the weight decay
    T beta1;
    T new1;
    T beta2;
    T new2;
    T step_size;   // lr / (1 - beta1^step)
    T root_scale;  // 1 / sqrt(1 - beta2^step)
    T eps;
    T sign;
  };

  // m <- beta1 m + (1 - beta1) g, v <- beta2 v + (1 - beta2) g^2,
  // (1 - lr weight_decay) x - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
  template <typename X, typename T>
  __device__ static T updated(T x, T grad, T (&states)[kStates], const Factors<T>& factors) {
    const T g = factors.sign * grad;
    T& average = states[0];
    T& square = states[1];
    // From the nearer end, as torch's lerp: with beta1 = 0 it is exactly g.
    average = factors.new1 < T(0.5) ? average + factors.new1 * (g - average) : g - factors.beta1 * (g - average);
    square = factors.beta2 * square + factors.new2 * g * g;
    const T moved = factors.step_size * average;
    if constexpr (sizeof(X) == 2) {
      const T scale = sqrt_approximately(square) * factors.root_scale + factors.eps;
      return factors.kept * x - divide_approximately(moved, scale);
    } else {
      return factors.kept * x - moved / (sqrt(square) * factors.root_scale + factors.eps);
    }
  }
};

}  // namespace

void launch_step(const StepArguments<AdamwRule>& arguments, Kinds kinds, cudaStream_t stream) {
  launch_kernels<Adamw>(arguments, kinds, stream);
}

}  // namespace grawa::cuda
