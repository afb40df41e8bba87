#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace grawa {

// The tensors in an optimizer's `state`. They are looked up by parameter once; from then on every call compares, object
// by object, whether the dictionaries still hold what they held, whoever replaced it and however. Needs the GIL.
class StateCache {
 public:
  StateCache(std::vector<at::Tensor> params, const std::vector<const char*>& names);

  void refresh(const pybind11::dict& state);
  // names[name] in the state of params[param]; undefined if there is none, or it is no tensor.
  const at::Tensor& find(int64_t param, int64_t name) const { return slots_[param * name_count_ + name].tensor; }

 private:
  struct Slot {
    pybind11::object object;
    at::Tensor tensor;
  };

  bool is_unchanged(const pybind11::dict& state) const;
  void look_up(const pybind11::dict& state);

  std::vector<at::Tensor> params_;
  std::vector<pybind11::object> names_;
  int64_t name_count_;
  // Strong references: a new object must not be taken for an old one that had its address.
  std::vector<std::pair<pybind11::object, pybind11::object>> entries_;
  std::vector<pybind11::object> states_;  // the inner dictionary of each parameter, or nothing
  std::vector<Slot> slots_;
};

}  // namespace grawa
