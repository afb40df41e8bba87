#include "step.h"

#include <cmath>

namespace grawa {
namespace {

template <typename T>
double advance(void* place) {
  T* count = static_cast<T*>(place);
  return *count += 1;
}

}  // namespace

void count_steps(std::vector<StepLayer>& layers) {
  double last_step = -1, last_beta1 = 0, last_beta2 = 0, bias1 = 1, bias2_root = 1;
  for (StepLayer& layer : layers) {
    if (!layer.has_grad || layer.step.data == nullptr || !layer.step_on_host) continue;
    const double step =
        layer.step.dtype == at::kDouble ? advance<double>(layer.step.data) : advance<float>(layer.step.data);
    const AdamwRule& rule = std::get<AdamwRule>(*layer.rule);
    // Nearly always the same for all layers.
    if (step != last_step || rule.beta1 != last_beta1 || rule.beta2 != last_beta2) {
      bias1 = 1 - std::pow(rule.beta1, step);
      bias2_root = std::sqrt(1 - std::pow(rule.beta2, step));
      last_step = step, last_beta1 = rule.beta1, last_beta2 = rule.beta2;
    }
    layer.bias1 = bias1;
    layer.bias2_root = bias2_root;
  }
}

double read_number(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble ? *tensor.const_data_ptr<double>() : *tensor.const_data_ptr<float>();
}

void check_number(const OptionalTensor& tensor, const char* name, at::Device device) {
  if (!tensor.has_value()) return;
  check_has_memory(*tensor, name);
  TORCH_CHECK(!tensor->is_neg(), name, " is a negated view of memory: clone it first");
  TORCH_CHECK(tensor->numel() == 1, name, " has shape ", tensor->sizes(), ": one element is needed");
  TORCH_CHECK(tensor->scalar_type() == at::kFloat || tensor->scalar_type() == at::kDouble, name, " has dtype ",
              tensor->scalar_type(), ": float32 and float64 are allowed");
  TORCH_CHECK(tensor->device() == device, name, " is on ", tensor->device(), ": it must be on ", device);
}

}  // namespace grawa
