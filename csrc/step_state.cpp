#include "step_state.h"

#include <torch/csrc/autograd/python_variable.h>

namespace grawa {
namespace {

namespace py = pybind11;

// Borrowed, or nothing.
PyObject* get(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

}  // namespace

StateCache::StateCache(std::vector<at::Tensor> params, const std::vector<const char*>& names)
    : params_(std::move(params)), name_count_(names.size()), states_(params_.size()) {
  for (const char* name : names) names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)));
  slots_.resize(params_.size() * names_.size());
}

void StateCache::refresh(const py::dict& state) {
  if (!is_unchanged(state)) look_up(state);
  for (size_t i = 0; i < params_.size(); ++i) {
    for (int64_t name = 0; name < name_count_; ++name) {
      Slot& slot = slots_[i * name_count_ + name];
      PyObject* object = states_[i] ? get(states_[i].ptr(), names_[name].ptr()) : nullptr;
      if (object == slot.object.ptr()) continue;
      slot.object = py::reinterpret_borrow<py::object>(object);
      slot.tensor = object != nullptr && THPVariable_Check(object) ? THPVariable_Unpack(object) : at::Tensor();
    }
  }
}

bool StateCache::is_unchanged(const py::dict& state) const {
  if (static_cast<size_t>(PyDict_Size(state.ptr())) != entries_.size()) return false;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (size_t i = 0; PyDict_Next(state.ptr(), &position, &key, &value); ++i) {
    if (key != entries_[i].first.ptr() || value != entries_[i].second.ptr()) return false;
  }
  return true;
}

void StateCache::look_up(const py::dict& state) {
  entries_.clear();
  for (const auto& [key, value] : state) {
    entries_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
  }
  for (size_t i = 0; i < params_.size(); ++i) {
    const auto param = py::reinterpret_steal<py::object>(THPVariable_Wrap(params_[i]));
    PyObject* inner = get(state.ptr(), param.ptr());
    states_[i] = py::reinterpret_borrow<py::object>(inner != nullptr && PyDict_Check(inner) ? inner : nullptr);
  }
}

}  // namespace grawa
