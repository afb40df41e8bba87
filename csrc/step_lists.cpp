#include "step_lists.h"

#include "overlaps.h"

namespace grawa {
namespace {

void check_list(at::TensorList tensors, const char* name, at::TensorList params, at::Device device) {
  TORCH_CHECK(tensors.size() == params.size(), name, " has ", tensors.size(), " tensors: as many as params, ",
              params.size(), ", are needed");
  for (size_t i = 0; i < tensors.size(); ++i) {
    check_list_entry(tensors[i], name, i, device);
    check_strided(tensors[i], name, i);
    TORCH_CHECK(tensors[i].scalar_type() == params[i].scalar_type(), name, "[", i, "] has dtype ",
                tensors[i].scalar_type(), ": that of params[", i, "], ", params[i].scalar_type(), ", is needed");
    TORCH_CHECK(tensors[i].sizes() == params[i].sizes(), name, "[", i, "] has shape ", tensors[i].sizes(),
                ": that of params[", i, "], ", params[i].sizes(), ", is needed");
  }
}

void check_writable_list(at::TensorList tensors, const char* name) {
  for (size_t i = 0; i < tensors.size(); ++i) check_writable(tensors[i], name, i);
}

void check_steps(at::TensorList steps, size_t layers, at::Device device) {
  TORCH_CHECK(steps.size() == layers, "steps has ", steps.size(), " tensors: as many as params, ", layers,
              ", are needed");
  for (const at::Tensor& step : steps) check_number(step, "steps", step.device().is_cpu() ? at::kCPU : device);
}

void check_lr(const at::Tensor& lr, int64_t layers, at::Device device) {
  TORCH_CHECK(lr.dim() == 0 || (lr.dim() == 1 && lr.size(0) == layers), "lr has shape ", lr.sizes(), ": [] or [",
              layers, "] is needed");
  TORCH_CHECK(lr.scalar_type() == at::kFloat || lr.scalar_type() == at::kDouble, "lr has dtype ", lr.scalar_type(),
              ": float32 and float64 are allowed");
  TORCH_CHECK(lr.device() == device || lr.is_cpu(), "lr is on ", lr.device(), ": it must be on ", device,
              " or on the CPU");
}

void check_center(const StepLists& lists, const StepOptions& options, at::Device device) {
  TORCH_CHECK(options.center.has_value() == options.pull.has_value(), "center and pull go together: only one is given");
  if (!options.center.has_value()) return;
  int64_t numel = 0;
  for (const at::Tensor& param : lists.params) numel += param.numel();
  check_flat(*options.center, "center", numel, device);
  check_per_layer(*options.pull, "pull", lists.params.size(), device);
  TORCH_CHECK(!options.pull->is_neg(), "pull is a negated view: resolve_neg() it");
}

// Element `index` of a list of numbers, or of the one number that stands for all.
StepScalar number_at(const at::Tensor& tensor, int64_t index) {
  const int64_t offset = tensor.dim() == 0 ? 0 : index * tensor.stride(0);
  const char* data = static_cast<const char*>(tensor.const_data_ptr()) + offset * tensor.element_size();
  const Span place{const_cast<char*>(data), tensor.scalar_type()};
  if (!tensor.is_cpu()) return {0, place};
  return {tensor.scalar_type() == at::kDouble ? *reinterpret_cast<const double*>(data)
                                              : *reinterpret_cast<const float*>(data),
          Span()};
}

}  // namespace

void check_step(const StepLists& lists, const StepOptions& options, const StepRule& rule, at::Device device) {
  check_rule(rule);
  check_list(lists.params, "params", lists.params, device);
  check_writable_list(lists.params, "params");
  check_list(lists.grads, "grads", lists.params, device);
  if (options.tensors.grad_scale.has_value()) check_writable_list(lists.grads, "grads");
  const auto* sgd = std::get_if<SgdRule>(&rule);
  const char* name = sgd ? "momentum_buffers" : "exp_avgs";
  if (sgd && sgd->momentum == 0) {
    TORCH_CHECK(lists.momentum.empty(), "momentum_buffers has ", lists.momentum.size(),
                " tensors, but momentum is 0: an empty list is needed");
  } else {
    check_list(lists.momentum, name, lists.params, device);
    check_writable_list(lists.momentum, name);
  }
  if (!sgd) {
    check_list(lists.square, "exp_avg_sqs", lists.params, device);
    check_writable_list(lists.square, "exp_avg_sqs");
    check_steps(lists.steps, lists.params.size(), device);
  }
  check_lr(options.lr, lists.params.size(), device);
  TORCH_CHECK(!options.lr.is_neg(), "lr is a negated view: resolve_neg() it");
  check_center(lists, options, device);
  if (options.tensors.norms.has_value()) {
    check_per_layer(*options.tensors.norms, "norms", lists.params.size(), device);
  }
  check_number(options.tensors.grad_scale, "grad_scale", device);
  check_number(options.tensors.found_inf, "found_inf", device);
}

Span StepCopies::place(const at::Tensor& tensor, at::IntArrayRef strides, Access access) {
  if (in_wire_order(tensor, strides)) return access == Access::kRead ? read_span(tensor) : write_span(tensor);
  return (access == Access::kRead ? read_ : written_).add(tensor, strides);
}

std::vector<StepLayer> StepCopies::layers_of(const StepLists& lists, const StepOptions& options, const StepRule& rule) {
  const Access grad_access = options.tensors.grad_scale.has_value() ? Access::kWrite : Access::kRead;
  std::vector<StepLayer> layers(lists.params.size());
  int64_t offset = 0;
  for (size_t i = 0; i < layers.size(); ++i) {
    StepLayer& layer = layers[i];
    const at::Tensor& param = lists.params[i];
    const std::vector<int64_t> strides = is_dense(param) ? param.strides().vec() : row_major_strides(param);
    layer.param = place(param, strides, Access::kWrite);
    layer.has_grad = true;
    layer.grad = place(lists.grads[i], strides, grad_access);
    if (!lists.momentum.empty()) layer.momentum = place(lists.momentum[i], strides, Access::kWrite);
    if (!lists.square.empty()) layer.square = place(lists.square[i], strides, Access::kWrite);
    if (!lists.steps.empty()) {
      layer.step = write_span(lists.steps[i]);
      layer.step_on_host = lists.steps[i].is_cpu();
    }
    layer.lr = number_at(options.lr, i);
    if (options.center.has_value()) {
      const auto bytes = offset * static_cast<int64_t>(options.center->element_size());
      layer.center = read_span(*options.center);
      layer.center.data = static_cast<char*>(layer.center.data) + bytes;
      layer.pull = number_at(*options.pull, i);
    }
    layer.rule = &rule;
    layer.norm_row = options.tensors.norms.has_value() ? static_cast<int64_t>(i) : -1;
    offset += param.numel();
  }
  TORCH_CHECK(!Overlaps(numels_of(lists.params)).found(layers, grad_access == Access::kWrite),
              "params, grads, states and center share memory: separate memory is needed");
  return layers;
}

void StepCopies::put_back(const StepLists& lists, const StepOptions& options) {
  written_.put_back();
  read_.clear();
  for (const at::TensorList list : {lists.params, lists.momentum, lists.square, lists.steps}) {
    for (const at::Tensor& tensor : list) mark_written(tensor);
  }
  if (options.tensors.grad_scale.has_value()) {
    for (const at::Tensor& grad : lists.grads) mark_written(grad);
  }
  if (options.tensors.norms.has_value()) mark_written(*options.tensors.norms);
}

}  // namespace grawa
