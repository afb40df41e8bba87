// The host's side of the local steps: the layers' places into a table, which changes when tensors move, and their
// settings into arguments, which may change at every step.
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "copies.h"
#include "cuda/kernels.h"
#include "cuda/step_arguments.cuh"

namespace grawa::cuda {
namespace {

StepNumber number_at(const Span& place) { return {place.data, place.dtype == at::kDouble}; }

StepNumber number_in(const OptionalTensor& tensor) {
  return tensor.has_value() ? number_at(read_span(*tensor)) : StepNumber();
}

auto numbers_of(const SgdRule& rule) {
  return std::tie(rule.momentum, rule.dampening, rule.weight_decay, rule.nesterov, rule.maximize);
}

auto numbers_of(const AdamwRule& rule) {
  return std::tie(rule.beta1, rule.beta2, rule.eps, rule.weight_decay, rule.maximize);
}

template <typename Rule>
bool is_same(const StepSettings<Rule>& a, const StepSettings<Rule>& b) {
  const auto others = [](const StepSettings<Rule>& settings) {
    return std::tie(settings.lr, settings.pull, settings.bias1, settings.bias2_root);
  };
  return others(a) == others(b) && numbers_of(a.rule) == numbers_of(b.rule);
}

bool has_same_settings(const StepLayer& a, const StepLayer& b) {
  return a.rule == b.rule && a.lr.value == b.lr.value && a.pull.value == b.pull.value && a.bias1 == b.bias1 &&
         a.bias2_root == b.bias2_root;
}

// The different settings of all layers, in the order of their first use.
template <typename Rule>
class SettingsList {
 public:
  // The layer must live as long as the list.
  int64_t place_of(const StepLayer& layer) {
    // Most layers have those of the layer before.
    if (last_layer_ != nullptr && has_same_settings(layer, *last_layer_)) return last_;
    last_layer_ = &layer;
    const StepSettings<Rule> settings{std::get<Rule>(*layer.rule), layer.lr.value, layer.pull.value, layer.bias1,
                                      layer.bias2_root};
    const auto is_it = [&](const StepSettings<Rule>& other) { return is_same(settings, other); };
    last_ = std::find_if(all_.begin(), all_.end(), is_it) - all_.begin();
    if (last_ == size()) all_.push_back(settings);
    return last_;
  }
  int64_t size() const { return static_cast<int64_t>(all_.size()); }
  const StepSettings<Rule>* data() const { return all_.data(); }

 private:
  std::vector<StepSettings<Rule>> all_;
  const StepLayer* last_layer_ = nullptr;
  int64_t last_ = 0;  // its settings
};

StepOperands operands_of(const StepLayer& layer, int64_t settings, bool has_norms) {
  StepOperands operands;
  operands.grad = layer.grad.data;
  operands.states[0] = layer.momentum.data;
  operands.states[1] = layer.square.data;
  operands.center = layer.center.data;
  operands.lr = number_at(layer.lr.place);
  operands.pull = number_at(layer.pull.place);
  if (!layer.step_on_host) operands.count = number_at(layer.step);
  operands.settings = static_cast<int32_t>(settings);
  operands.center_dtype = static_cast<int32_t>(layer.center.dtype);
  operands.norm_row = has_norms ? static_cast<int32_t>(layer.norm_row) : -1;
  operands.has_grad = layer.has_grad;
  return operands;
}

class CudaStepper : public Stepper {
 public:
  CudaStepper(at::TensorList params, at::Device device)
      : numels_(numels_of(params)), table_(params, device, true, sizeof(StepOperands)) {}

  bool can_step(const std::vector<StepLayer>& layers, const StepTensors& tensors) const override {
    const c10::cuda::CUDAGuard guard(table_.device());
    const bool is_capturing = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
    if (!tensors.found_inf.has_value() && !is_capturing) return true;
    return std::none_of(layers.begin(), layers.end(), [](const StepLayer& layer) {
      return layer.has_grad && layer.step.data != nullptr && layer.step_on_host;
    });
  }

  void step(std::vector<StepLayer>& layers, const StepTensors& tensors) override {
    if (layers.empty()) return;
    const c10::cuda::CUDAGuard guard(table_.device());
    count_steps(layers);
    if (std::holds_alternative<SgdRule>(*layers[0].rule)) {
      launch<SgdRule>(layers, tensors);
    } else {
      launch<AdamwRule>(layers, tensors);
    }
  }

 private:
  template <typename Rule>
  void launch(const std::vector<StepLayer>& layers, const StepTensors& tensors) {
    SettingsList<Rule> settings;
    for (size_t i = 0; i < layers.size(); ++i) {
      table_.set(i, layers[i].param, numels_[i]);
      table_.set_operands(i, operands_of(layers[i], settings.place_of(layers[i]), tensors.norms.has_value()));
    }
    const Table::Lease lease = table_.lease();
    StepArguments<Rule> arguments = {};
    arguments.view = lease.view;
    if (tensors.norms.has_value()) arguments.norms = write_scalars(*tensors.norms);
    arguments.grad_scale = number_in(tensors.grad_scale);
    arguments.found_inf = number_in(tensors.found_inf);
    for (int64_t first = 0; first < settings.size(); first += kMostSettings) {
      arguments.first = first;
      arguments.count = std::min(kMostSettings, settings.size() - first);
      std::copy_n(settings.data() + first, arguments.count, arguments.settings);
      launch_step(arguments, table_.kinds(), c10::cuda::getCurrentCUDAStream());
    }
  }

  std::vector<int64_t> numels_;
  Table table_;
};

}  // namespace

std::unique_ptr<Stepper> make_stepper(at::TensorList params, at::Device device) {
  return std::make_unique<CudaStepper>(params, device);
}

}  // namespace grawa::cuda
