#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace grawa {

// What a dictionary held when it was last read: to compare object by object, in order, takes a fraction of the time of
// looking keys up. Strong references: a new object must not be taken for an old one that had its address.
class DictContents {
 public:
  void read(PyObject* dict);
  bool are_those_of(PyObject* dict) const;

 private:
  std::vector<std::pair<pybind11::object, pybind11::object>> entries_;
};

// The tensors in an optimizer's `state`. They are looked up by name once; from then on every call compares whether the
// dictionaries still hold what they held, whoever replaced it and however. Needs the GIL.
class StateCache {
 public:
  StateCache(std::vector<at::Tensor> params, const std::vector<const char*>& names);

  void refresh(const pybind11::dict& state);
  // names[name] in the state of params[param]; undefined if there is none, or it is no tensor.
  const at::Tensor& find(int64_t param, int64_t name) const { return tensors_[param * name_count_ + name]; }

 private:
  // The inner dictionary of a parameter, or nothing.
  struct Inner {
    pybind11::object dict;
    DictContents contents;
  };

  void look_up(const pybind11::dict& state);
  void look_up_tensors(int64_t param);

  std::vector<at::Tensor> params_;
  std::vector<pybind11::object> names_;
  int64_t name_count_;
  DictContents outer_;
  std::vector<Inner> inner_;
  std::vector<at::Tensor> tensors_;
};

}  // namespace grawa
