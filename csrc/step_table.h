#pragma once

#include <ATen/core/DimVector.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "overlaps.h"
#include "step.h"
#include "step_state.h"

namespace grawa {

enum class Algorithm { kSgd, kAdamw };

// The local steps of one torch optimizer, without a loop over its layers in Python. It holds no state of its own: that
// stays in the optimizer's, in torch's format, and whatever it cannot step is left to torch.
class StepTable {
 public:
  // groups: the param group of each parameter.
  StepTable(const std::string& algorithm, std::vector<at::Tensor> params, std::vector<int64_t> groups);

  // For each parameter: the row of its gradient's norm, or -1; its part of the flat center, if any, and the strides of
  // the order in which that lies.
  void set_targets(std::vector<int64_t> norm_rows, std::vector<OptionalTensor> centers,
                   std::vector<std::vector<int64_t>> wire_strides);

  // False, with nothing changed, if torch must make this step. Needs the GIL, and gives it up while the kernels run.
  bool step(const pybind11::dict& state, const pybind11::sequence& hyperparameters, double pull,
            const StepTensors& tensors);

 private:
  struct Param {
    at::Tensor tensor;
    int64_t group;
    int64_t norm_row = -1;
    OptionalTensor center;
    at::DimVector wire_strides;
  };
  class Form;
  struct Group {
    StepScalar lr;
    StepRule rule;
  };

  std::unique_lock<std::mutex> lock();
  Group read_group(pybind11::handle values, size_t index) const;
  void read_groups(const pybind11::sequence& hyperparameters);
  void check_tensors(double pull, const StepTensors& tensors) const;
  bool are_all_plain() const;
  std::unique_ptr<Stepper> make_stepper() const;
  // Sets the entry of a layer; false if torch must step it.
  bool gather(size_t index, double pull, const StepTensors& tensors);
  bool gather_state(size_t index, const Form& form);
  void mark_all_written(const StepTensors& tensors) const;

  Algorithm algorithm_;
  std::vector<Param> params_;
  std::vector<int64_t> numels_;
  int64_t group_count_ = 0;
  int64_t norm_count_ = 0;  // rows that norms must have
  at::Device device_;
  std::vector<Group> groups_;
  StateCache state_;
  std::vector<StepLayer> layers_;
  Overlaps overlaps_;
  std::unique_ptr<Stepper> stepper_;
  std::mutex mutex_;
};

}  // namespace grawa
