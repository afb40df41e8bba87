#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "checks.h"
#include "span.h"

// The whole local step in one pass over memory: the update of torch.optim.SGD or AdamW, the pull toward the center, and
// the norms of the gradients. What the kernels of both devices and StepTable share.
namespace grawa {

// Hyperparameters by torch's names; the learning rate is the layer's.
struct SgdRule {
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  bool maximize = false;
};

struct AdamwRule {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool maximize = false;
};

using StepRule = std::variant<SgdRule, AdamwRule>;

// A number that the host knows; or, with data, one of float32 or float64 in device memory, which only a kernel reads.
struct StepScalar {
  double value = 0;
  Span place;
};

// One layer of a step. All spans but the center's are of one dtype, and all are in one order of elements.
struct StepLayer {
  Span param;
  bool has_grad = false;  // false: the layer is only pulled
  Span grad;              // written where there is a grad_scale
  Span momentum;          // SGD: the momentum buffer, without data where momentum is 0; AdamW: exp_avg
  Span square;            // AdamW: exp_avg_sq
  Span center;            // of any dtype; without data: no pull
  StepScalar lr;
  StepScalar pull;
  const StepRule* rule = nullptr;  // outlives the step
  int64_t norm_row = -1;           // of the gradient's norm in `norms`; -1: not wanted
  // AdamW's count of steps, one element of float32 or float64, incremented by the step.
  Span step;
  bool step_on_host = true;
  // 1 - beta^step of the step being made, where the count is on the host: of beta1, and the root of that of beta2.
  double bias1 = 1;
  double bias2_root = 1;
};

// On the layers' device.
struct StepTensors {
  OptionalTensor norms;       // receives kNoGradient for a layer without gradient, and for all after an overflow
  OptionalTensor grad_scale;  // one element: gradients are divided by it in place
  OptionalTensor found_inf;   // one element; above 0: no update, the pull alone
};

// Makes steps of one list of layers, whose sizes are fixed; StepTable keeps it, so that nothing is set up again.
class Stepper {
 public:
  virtual ~Stepper() = default;
  // Whether all that the host must know for the step is known to it, without waiting for the device.
  virtual bool can_step(const std::vector<StepLayer>&, const StepTensors&) const { return true; }
  // The arguments have been checked.
  virtual void step(std::vector<StepLayer>& layers, const StepTensors& tensors) = 0;
};

namespace cpu {
std::unique_ptr<Stepper> make_stepper(const std::vector<int64_t>& numels);
}
namespace cuda {
// None in a build without CUDA.
std::unique_ptr<Stepper> make_stepper(at::TensorList params, at::Device device);
}  // namespace cuda

// Adds 1 to every count of steps that is on the host and whose layer has a gradient, and sets the bias corrections.
void count_steps(std::vector<StepLayer>& layers);

// The number in a tensor of one element on the host.
double read_number(const at::Tensor& tensor);

// One element of float32 or float64.
void check_number(const OptionalTensor& tensor, const char* name, at::Device device);

}  // namespace grawa
