#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "copies.h"
#include "step.h"

// What sgd_step_ and adamw_step_ do before and after the kernels; the same on both devices.
namespace grawa {

// The arguments as they came. A list that the rule does not use is empty.
struct StepLists {
  at::TensorList params;
  at::TensorList grads;
  at::TensorList momentum;  // momentum_buffers or exp_avgs
  at::TensorList square;    // exp_avg_sqs
  at::TensorList steps;
};

struct StepOptions {
  const at::Tensor& lr;  // 0-dim or [layers], on the host or on the layers' device
  OptionalTensor center;
  OptionalTensor pull;
  StepTensors tensors;
};

void check_step(const StepLists& lists, const StepOptions& options, const StepRule& rule, at::Device device);

// The layers of an operator's lists. Tensors that are not in the order of their parameter's memory (row-major where
// that is not dense) are copied; put_back brings what was written to where it came from, and tells autograd.
class StepCopies {
 public:
  std::vector<StepLayer> layers_of(const StepLists& lists, const StepOptions& options, const StepRule& rule);
  void put_back(const StepLists& lists, const StepOptions& options);

 private:
  Span place(const at::Tensor& tensor, at::IntArrayRef strides, Access access);

  Copies read_;
  Copies written_;
};

}  // namespace grawa
