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

void DictContents::read(PyObject* dict) {
  entries_.clear();
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(dict, &position, &key, &value)) {
    entries_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
  }
}

bool DictContents::are_those_of(PyObject* dict) const {
  if (static_cast<size_t>(PyDict_GET_SIZE(dict)) != entries_.size()) return false;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  for (const auto& entry : entries_) {
    PyDict_Next(dict, &position, &key, &value);
    if (key != entry.first.ptr() || value != entry.second.ptr()) return false;
  }
  return true;
}

StateCache::StateCache(std::vector<at::Tensor> params, const std::vector<const char*>& names)
    : params_(std::move(params)), name_count_(names.size()), inner_(params_.size()) {
  for (const char* name : names) names_.push_back(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name)));
  tensors_.resize(params_.size() * names_.size());
}

void StateCache::refresh(const py::dict& state) {
  if (!outer_.are_those_of(state.ptr())) look_up(state);
  for (size_t i = 0; i < inner_.size(); ++i) {
    if (inner_[i].dict && !inner_[i].contents.are_those_of(inner_[i].dict.ptr())) look_up_tensors(i);
  }
}

void StateCache::look_up(const py::dict& state) {
  for (size_t i = 0; i < params_.size(); ++i) {
    const auto param = py::reinterpret_steal<py::object>(THPVariable_Wrap(params_[i]));
    PyObject* dict = get(state.ptr(), param.ptr());
    inner_[i].dict = py::reinterpret_borrow<py::object>(dict != nullptr && PyDict_Check(dict) ? dict : nullptr);
    look_up_tensors(i);
  }
  outer_.read(state.ptr());
}

void StateCache::look_up_tensors(int64_t param) {
  Inner& inner = inner_[param];
  for (int64_t name = 0; name < name_count_; ++name) {
    PyObject* object = inner.dict ? get(inner.dict.ptr(), names_[name].ptr()) : nullptr;
    at::Tensor& tensor = tensors_[param * name_count_ + name];
    tensor = object != nullptr && THPVariable_Check(object) ? THPVariable_Unpack(object) : at::Tensor();
  }
  if (inner.dict) inner.contents.read(inner.dict.ptr());
}

}  // namespace grawa
