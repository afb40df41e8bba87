#pragma once

#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

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
    OptionalTensor center;
    std::vector<int64_t> wire_strides;
  };
  struct Hyperparameters {
    StepScalar lr;
    at::Tensor lr_tensor;  // keeps the number of lr where it is
    StepRule rule;
  };

  Hyperparameters read_hyperparameters(pybind11::handle values) const;
  void check_tensors(double pull, const StepTensors& tensors) const;
  // Whether layer `index` can be stepped; sets all of its entry.
  bool gather(int64_t index, double pull);
  bool gather_state(int64_t index);
  bool has_moved();
  void mark_all_written(const StepTensors& tensors) const;

  Algorithm algorithm_;
  std::vector<Param> params_;
  std::vector<int64_t> numels_;
  int64_t group_count_ = 0;
  int64_t norm_count_ = 0;  // rows that norms must have
  bool is_steppable_;       // dtypes and devices are ones that there are kernels for
  std::vector<Hyperparameters> hyperparameters_;
  StateCache state_;
  std::vector<StepLayer> layers_;
  std::vector<const void*> places_;  // of all that the last step touched: it was found not to share memory
  std::unique_ptr<Stepper> stepper_;
  std::mutex mutex_;
};

}  // namespace grawa
