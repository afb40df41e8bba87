#include "step_table.h"

#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>

#include "copies.h"

namespace grawa {
namespace {

namespace py = pybind11;

// Places in StateCache.
constexpr int64_t kMomentumBuffer = 0;
constexpr int64_t kStep = 0, kExpAvg = 1, kExpAvgSq = 2, kMaxExpAvgSq = 3;

std::vector<const char*> names_of(Algorithm algorithm) {
  if (algorithm == Algorithm::kSgd) return {"momentum_buffer"};
  return {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"};
}

Algorithm algorithm_of(const std::string& name) {
  TORCH_CHECK(name == "sgd" || name == "adamw", "algorithm is \"", name, "\": \"sgd\" and \"adamw\" are allowed");
  return name == "sgd" ? Algorithm::kSgd : Algorithm::kAdamw;
}

// Whether its memory is its own and holds its elements, while no dispatch mode is on.
bool has_memory(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && (tensor.key_set() & at::kTensorSubclassLike).empty() &&
         has_its_memory(tensor);
}

// Memory that a kernel may go through from its first element to its last.
bool is_plain(const at::Tensor& tensor) {
  return has_memory(tensor) && is_dense(tensor) && is_supported(tensor.scalar_type());
}

bool is_count(const at::Tensor& step) {
  return step.defined() && step.numel() == 1 && has_memory(step) && !step.is_neg() &&
         (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble);
}

// The hyperparameters of one group.
struct Numbers {
  PyObject* tuple;
  size_t group;

  double number(size_t index) const {
    const double value = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, index));
    if (value == -1 && PyErr_Occurred()) refuse(index, "a number");
    return value;
  }

  bool flag(size_t index) const {
    const int value = PyObject_IsTrue(PyTuple_GET_ITEM(tuple, index));
    if (value < 0) refuse(index, "true or false");
    return value != 0;
  }

  [[noreturn]] void refuse(size_t index, const char* wanted) const {
    const py::error_already_set error;  // takes it over
    TORCH_CHECK(false, "hyperparameters[", group, "][", index, "] must be ", wanted, ", but is not: ", error.what());
  }
};

// Of groups and rows: no model has more, and one more is a number, too.
constexpr int64_t kMost = (int64_t{1} << 31) - 1;

}  // namespace

// What the tensors of a layer must have in common: each then holds in its n-th place in memory what belongs to the n-th
// of the parameter.
class StepTable::Form {
 public:
  // Of a plain parameter, while that lasts.
  explicit Form(const at::Tensor& param)
      : keys_(param.key_set()),
        device_(param.device()),
        dtype_(param.scalar_type()),
        sizes_(param.sizes()),
        strides_(param.strides()) {}

  bool is_that_of(const at::Tensor& other) const {
    if (!other.defined() || other.device() != device_ || other.scalar_type() != dtype_) return false;
    if (!is_same(other.sizes(), sizes_)) return false;
    // Nearly always, and then it is as plain as the parameter.
    if (other.key_set() == keys_ && is_same(other.strides(), strides_)) return has_its_memory(other);
    return is_plain(other) && in_wire_order(other, strides_);
  }

 private:
  c10::DispatchKeySet keys_;
  at::Device device_;
  at::ScalarType dtype_;
  at::IntArrayRef sizes_;
  at::IntArrayRef strides_;
};

StepTable::StepTable(const std::string& algorithm, std::vector<at::Tensor> params, std::vector<int64_t> groups)
    : algorithm_(algorithm_of(algorithm)),
      numels_(numels_of(params)),
      device_(params.empty() ? at::Device(at::kCPU) : params[0].device()),
      state_(params, names_of(algorithm_)),
      layers_(params.size()),
      overlaps_(numels_) {
  TORCH_CHECK(groups.size() == params.size(), "groups has ", groups.size(), " entries: one per parameter, ",
              params.size(), ", is needed");
  for (size_t i = 0; i < params.size(); ++i) {
    TORCH_CHECK(groups[i] >= 0 && groups[i] <= kMost, "groups[", i, "] is ", groups[i], ": it must be from 0 to ",
                kMost);
    group_count_ = std::max(group_count_, groups[i] + 1);
    params_.push_back({params[i], groups[i], -1, std::nullopt, {}});
  }
}

void StepTable::set_targets(std::vector<int64_t> norm_rows, std::vector<OptionalTensor> centers,
                            std::vector<std::vector<int64_t>> wire_strides) {
  const auto locked = lock();
  const auto check_count = [&](size_t count, const char* name) {
    TORCH_CHECK(count == params_.size(), name, " has ", count, " entries: one per parameter, ", params_.size(),
                ", is needed");
  };
  check_count(norm_rows.size(), "norm_rows");
  check_count(centers.size(), "centers");
  check_count(wire_strides.size(), "wire_strides");
  for (size_t i = 0; i < params_.size(); ++i) {
    TORCH_CHECK(norm_rows[i] >= -1 && norm_rows[i] <= kMost, "norm_rows[", i, "] is ", norm_rows[i],
                ": it must be from -1 to ", kMost);
    TORCH_CHECK(wire_strides[i].size() == static_cast<size_t>(params_[i].tensor.dim()), "wire_strides[", i, "] has ",
                wire_strides[i].size(), " entries: one per dimension of the parameter, ", params_[i].tensor.dim(),
                ", is needed");
    if (centers[i].has_value()) check_flat(*centers[i], "centers", numels_[i], centers[i]->device());
  }
  norm_count_ = 0;
  for (size_t i = 0; i < params_.size(); ++i) {
    params_[i].norm_row = norm_rows[i];
    norm_count_ = std::max(norm_count_, norm_rows[i] + 1);
    params_[i].center = std::move(centers[i]);
    params_[i].wire_strides.assign(wire_strides[i].begin(), wire_strides[i].end());
  }
}

// To wait for the other thread would be to wait, with the GIL, for one that needs it.
std::unique_lock<std::mutex> StepTable::lock() {
  std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
  TORCH_CHECK(lock.owns_lock(), "another thread is making a step of this StepTable");
  return lock;
}

StepTable::Group StepTable::read_group(py::handle values, size_t index) const {
  TORCH_CHECK(PyTuple_Check(values.ptr()) && PyTuple_GET_SIZE(values.ptr()) == 6, "hyperparameters[", index,
              "] must be a tuple of 6");
  Group group;
  const Numbers read{values.ptr(), index};
  PyObject* lr = PyTuple_GET_ITEM(values.ptr(), 0);
  if (!device_.is_cpu() && THPVariable_Check(lr) && THPVariable_Unpack(lr).device() == device_) {
    const at::Tensor& tensor = THPVariable_Unpack(lr);
    TORCH_CHECK(tensor.numel() == 1 && (tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble),
                "lr of hyperparameters[", index, "] must be one float32 or float64");
    group.lr.place = read_span(tensor);
  } else {
    group.lr.value = read.number(0);
  }
  if (algorithm_ == Algorithm::kSgd) {
    group.rule = SgdRule{read.number(1), read.number(2), read.number(3), read.flag(4), read.flag(5)};
  } else {
    group.rule = AdamwRule{read.number(1), read.number(2), read.number(3), read.number(4), read.flag(5)};
  }
  return group;
}

void StepTable::read_groups(const py::sequence& hyperparameters) {
  TORCH_CHECK(py::len(hyperparameters) >= static_cast<size_t>(group_count_), "hyperparameters has ",
              py::len(hyperparameters), " entries: one per param group, ", group_count_, ", is needed");
  groups_.clear();
  for (int64_t i = 0; i < group_count_; ++i) groups_.push_back(read_group(hyperparameters[i], i));
}

void StepTable::check_tensors(double pull, const StepTensors& tensors) const {
  TORCH_CHECK(pull >= 0 && pull <= 1, "pull is ", pull, ": it must be in [0, 1]");
  if (tensors.norms.has_value()) {
    check_per_layer_output(*tensors.norms, "norms", std::max(norm_count_, tensors.norms->numel()), device_);
  }
  check_number(tensors.grad_scale, "grad_scale", device_);
  check_number(tensors.found_inf, "found_inf", device_);
}

// An expanded parameter may say that it has more elements than a stepper could be made for.
bool StepTable::are_all_plain() const {
  return std::all_of(params_.begin(), params_.end(), [](const Param& param) { return is_plain(param.tensor); });
}

std::unique_ptr<Stepper> StepTable::make_stepper() const {
  if (device_.is_cpu()) return cpu::make_stepper(numels_);
  std::vector<at::Tensor> tensors;
  for (const Param& param : params_) tensors.push_back(param.tensor);
  return cuda::make_stepper(tensors, device_);
}

bool StepTable::step(const py::dict& state, const py::sequence& hyperparameters, double pull,
                     const StepTensors& tensors) {
  const auto locked = lock();
  read_groups(hyperparameters);
  for (const Param& param : params_) {
    // Moved, or on several devices.
    if (param.tensor.device() != device_) return false;
  }
  check_tensors(pull, tensors);
  if (!stepper_ && are_all_plain()) stepper_ = make_stepper();
  if (!stepper_ || c10::impl::dispatch_mode_enabled()) return false;
  state_.refresh(state);
  for (size_t i = 0; i < params_.size(); ++i) {
    if (!gather(i, pull, tensors)) return false;
  }
  if (!stepper_->can_step(layers_, tensors)) return false;
  if (overlaps_.found(layers_, tensors.grad_scale.has_value())) return false;
  mark_all_written(tensors);
  const py::gil_scoped_release released;
  stepper_->step(layers_, tensors);
  return true;
}

bool StepTable::gather(size_t index, double pull, const StepTensors& tensors) {
  const Param& param = params_[index];
  const at::Tensor& tensor = param.tensor;
  StepLayer& layer = layers_[index];
  if (!is_plain(tensor) || tensor.numel() != numels_[index]) return false;
  layer.param = write_span(tensor);
  layer.norm_row = tensors.norms.has_value() ? param.norm_row : -1;
  layer.center = Span();
  layer.pull.value = 0;
  if (pull != 0 && param.center.has_value()) {
    const at::Tensor& center = *param.center;  // which may be other than it was
    if (center.device() != device_ || center.numel() != numels_[index] || !is_plain(center)) return false;
    if (!in_wire_order(tensor, param.wire_strides)) return false;
    layer.center = read_span(center);
    layer.pull.value = pull;
  }
  const Group& group = groups_[param.group];
  layer.lr = group.lr;
  layer.rule = &group.rule;
  layer.grad = layer.momentum = layer.square = layer.step = Span();
  const at::Tensor& grad = grad_of(tensor);
  layer.has_grad = grad.defined();
  if (!layer.has_grad) return true;
  const Form form(tensor);
  if (!form.is_that_of(grad)) return false;
  layer.grad = tensors.grad_scale.has_value() ? write_span(grad) : read_span(grad);
  return gather_state(index, form);
}

bool StepTable::gather_state(size_t index, const Form& form) {
  StepLayer& layer = layers_[index];
  if (algorithm_ == Algorithm::kSgd) {
    if (std::get<SgdRule>(*layer.rule).momentum == 0) return true;
    const at::Tensor& buffer = state_.find(index, kMomentumBuffer);
    if (!form.is_that_of(buffer)) return false;
    layer.momentum = write_span(buffer);
    return true;
  }
  const at::Tensor& step = state_.find(index, kStep);
  const at::Tensor& mean = state_.find(index, kExpAvg);
  const at::Tensor& mean_square = state_.find(index, kExpAvgSq);
  // amsgrad keeps one more.
  if (state_.find(index, kMaxExpAvgSq).defined() || !is_count(step)) return false;
  const bool step_on_host = step.is_cpu();
  if (!step_on_host && step.device() != device_) return false;
  if (!form.is_that_of(mean) || !form.is_that_of(mean_square)) return false;
  layer.step = write_span(step);
  layer.step_on_host = step_on_host;
  layer.momentum = write_span(mean);
  layer.square = write_span(mean_square);
  return true;
}

void StepTable::mark_all_written(const StepTensors& tensors) const {
  const int64_t first_tensor = algorithm_ == Algorithm::kSgd ? kMomentumBuffer : kStep;
  const int64_t tensor_count = algorithm_ == Algorithm::kSgd ? 1 : 3;
  for (size_t i = 0; i < params_.size(); ++i) {
    const StepLayer& layer = layers_[i];
    // The pull alone is not told, as averaging never is: a backward that runs beside the bare optimizer runs here.
    if (!layer.has_grad) continue;
    mark_written(params_[i].tensor);
    if (tensors.grad_scale.has_value()) mark_written(grad_of(params_[i].tensor));
    for (int64_t name = first_tensor; name < first_tensor + tensor_count; ++name) {
      const at::Tensor& tensor = state_.find(i, name);
      if (layer.momentum.data != nullptr && tensor.defined()) mark_written(tensor);
    }
  }
  if (tensors.norms.has_value()) mark_written(*tensors.norms);
}

}  // namespace grawa
