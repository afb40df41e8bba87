#include "layer_table.h"

#include <ATen/Functions.h>
#include <c10/core/InferenceMode.h>

namespace grawa {
namespace {

std::vector<int64_t> default_strides(const at::Tensor& param) {
  return is_dense(param) ? param.strides().vec() : row_major_strides(param);
}

at::Device device_of(const std::vector<at::Tensor>& params) {
  return params.empty() ? at::Device(at::kCPU) : params[0].device();
}

void check_params(const std::vector<at::Tensor>& params) {
  for (size_t i = 0; i < params.size(); ++i) {
    check_strided(params[i], "params", i);
    check_list_entry(params[i], "params", i, device_of(params));
    check_writable(params[i], "params", i);
  }
}

void check_wire_strides(const std::vector<std::vector<int64_t>>& strides, const std::vector<at::Tensor>& params) {
  TORCH_CHECK(strides.size() == params.size(), "wire_strides has ", strides.size(), " entries: one per parameter, ",
              params.size(), ", is needed");
  for (size_t i = 0; i < params.size(); ++i) {
    const at::IntArrayRef given(strides[i]);
    TORCH_CHECK(given.size() == static_cast<size_t>(params[i].dim()) && is_dense_order(params[i].sizes(), given),
                "wire_strides[", i, "] is ", given, ": strides of a dense tensor of shape ", params[i].sizes(),
                " are needed");
  }
}

}  // namespace

LayerTable::LayerTable(std::vector<at::Tensor> params, std::optional<std::vector<std::vector<int64_t>>> wire_strides)
    : device_(device_of(params)), chunks_((check_params(params), numels_of(params))) {
  if (wire_strides.has_value()) check_wire_strides(*wire_strides, params);
  for (size_t i = 0; i < params.size(); ++i) {
    const at::Tensor& param = params[i];
    layers_.push_back(
        {param, param.sizes().vec(), wire_strides.has_value() ? (*wire_strides)[i] : default_strides(param)});
  }
  work_.spans.resize(layers_.size());
  work_.partials.reserve(chunks_.chunks());
  work_.scalars.reserve(layers_.size());
  if (device_.is_cpu()) return;
  tables_.reset(new DeviceTables{{params, device_, true}, {params, device_, true}});
}

at::ScalarType LayerTable::norm_dtype() const {
  for (const Layer& layer : layers_) {
    if (layer.param.scalar_type() == at::kDouble) return at::kDouble;
  }
  return at::kFloat;
}

void LayerTable::gather_params(Access access) {
  work_.copies.clear();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const at::Tensor& param = layer.param;
    check_list_entry(param, "params", i, device_);
    TORCH_CHECK(is_same(param.sizes(), layer.sizes), "params[", i, "] has changed its shape from ",
                at::IntArrayRef(layer.sizes), " to ", param.sizes(), ": build a new LayerTable");
    if (in_wire_order(param, layer.strides)) {
      work_.spans[i] = access == Access::kRead ? read_span(param) : write_span(param);
    } else {
      if (access == Access::kWrite) check_writable(param, "params", i);
      work_.spans[i] = work_.copies.add(param, layer.strides);
    }
    if (tables_) tables_->params.set(i, work_.spans[i], chunks_.numel(i));
  }
}

void LayerTable::gather_grads() {
  work_.copies.clear();
  all_dense_ = true;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const at::Tensor& grad = grad_of(layers_[i].param);
    if (grad.defined()) check_list_entry(grad, "grads", i, device_);
    if (!grad.defined() || grad.is_sparse()) {
      work_.spans[i] = Span();
      all_dense_ = false;
      continue;
    }
    check_strided(grad, "grads", i);
    TORCH_CHECK(grad.numel() == chunks_.numel(i), "grads[", i, "] has ", grad.numel(), " elements: those of params[", i,
                "], ", chunks_.numel(i), ", are needed");
    work_.spans[i] = work_.copies.span_of(grad, Access::kRead);
  }
}

void LayerTable::gather_grads_on_device() {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const at::Tensor& grad = grad_of(layers_[i].param);
    if (!grad.defined()) {
      tables_->grads.set_missing(i);
    } else if (!grad.is_sparse()) {
      tables_->grads.set(i, work_.spans[i], grad.numel());
    } else {
      // Entries for one place are added, so there are at most as many values as the parameter has.
      const at::Tensor values = grad.detach().coalesce().values();
      work_.copies.keep(values);
      tables_->grads.set(i, work_.copies.span_of(values, Access::kRead), values.numel());
    }
  }
}

at::Tensor LayerTable::empty_norms() const {
  return at::empty({static_cast<int64_t>(layers_.size())}, at::TensorOptions().dtype(norm_dtype()).device(device_));
}

void LayerTable::write_other_grad_norms() {
  for (size_t i = 0; i < layers_.size(); ++i) {
    const at::Tensor& grad = grad_of(layers_[i].param);
    if (!grad.defined()) {
      cpu::write_scalar(grad_norms_, i, kNoGradient);
    } else if (grad.is_sparse()) {
      cpu::write_scalar(grad_norms_, i, cpu::sparse_norm(grad, work_));
    }
  }
}

at::Tensor LayerTable::grad_norms() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!grad_norms_.defined() || grad_norms_.scalar_type() != norm_dtype()) {
    const c10::InferenceMode outlives_the_block(false);
    grad_norms_ = empty_norms();
  }
  gather_grads();
  if (tables_) {
    gather_grads_on_device();
    cuda::layer_norms(tables_->grads, grad_norms_);
  } else {
    cpu::layer_norms(chunks_, work_, grad_norms_);
    if (!all_dense_) write_other_grad_norms();
  }
  mark_written(grad_norms_);
  work_.copies.clear();
  return grad_norms_;
}

at::Tensor LayerTable::norms() {
  const std::lock_guard<std::mutex> lock(mutex_);
  gather_params(Access::kRead);
  const at::Tensor norms = empty_norms();
  if (tables_) {
    cuda::layer_norms(tables_->params, norms);
  } else {
    cpu::layer_norms(chunks_, work_, norms);
  }
  work_.copies.clear();
  return norms;
}

void LayerTable::pack(const at::Tensor& weights, const at::Tensor& out, const OptionalTensor& base) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gather_params(Access::kRead);
  if (tables_) {
    cuda::pack(tables_->params, weights, out, base);
  } else {
    cpu::pack(chunks_, work_, weights, out, base);
  }
  work_.copies.clear();
}

void LayerTable::blend_(const at::Tensor& center, const at::Tensor& pull, const OptionalTensor& distances,
                        bool tells_autograd) {
  const std::lock_guard<std::mutex> lock(mutex_);
  gather_params(Access::kWrite);
  if (tables_) {
    cuda::blend(tables_->params, center, pull, distances);
  } else {
    cpu::blend(chunks_, work_, center, pull, distances);
  }
  work_.copies.put_back();
  if (!tells_autograd) return;
  for (const Layer& layer : layers_) mark_written(layer.param);
}

}  // namespace grawa
