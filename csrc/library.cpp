#include <ATen/Version.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cuda/kernels.h"
#include "layer_table.h"
#include "step_table.h"

TORCH_LIBRARY(grawa, m) {
  m.def("layer_norms(Tensor[] tensors) -> Tensor");
  m.def("pack(Tensor[] tensors, Tensor weights, Tensor(a!) out, Tensor? base=None) -> ()");
  m.def("blend_(Tensor(a!)[] tensors, Tensor center, Tensor pull, Tensor(b!)? distances=None) -> ()");
  m.def("update_estimates_(Tensor(a!) sums, Tensor(b!) counts, Tensor norms, float decay) -> ()");
}

// None of these is differentiated, and parameters may be passed as they are. Without a kernel here autograd would
// mark the results as part of a graph that it cannot walk.
TORCH_LIBRARY_IMPL(grawa, Autograd, m) {
  for (const char* name : {"layer_norms", "pack", "blend_", "update_estimates_"}) {
    m.impl(name, torch::CppFunction::makeFallthrough());
  }
}

namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
#if defined(__clang__)
  info["compiler"] = __VERSION__;
#else
  info["compiler"] = "GCC " __VERSION__;
#endif
  info["cxx_standard"] = __cplusplus / 100 % 100;
  info["cpu_capability"] = at::get_cpu_capability();
#ifdef _OPENMP
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda_architectures"] = grawa::cuda::architectures();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using grawa::LayerTable;
  using grawa::OptionalTensor;
  using grawa::StepTable;
  const auto release = py::call_guard<py::gil_scoped_release>();
  const auto step = [](StepTable& table, const py::dict& state, const py::sequence& hyperparameters, double pull,
                       const OptionalTensor& norms, const OptionalTensor& grad_scale, const OptionalTensor& found_inf) {
    return table.step(state, hyperparameters, pull, {norms, grad_scale, found_inf});
  };
  m.def("build_info", build_info);
  py::class_<LayerTable>(m, "LayerTable")
      .def(py::init<std::vector<at::Tensor>, std::optional<std::vector<std::vector<int64_t>>>>(), py::arg("params"),
           py::arg("wire_strides") = py::none())
      .def("grad_norms", &LayerTable::grad_norms, release)
      .def("norms", &LayerTable::norms, release)
      .def("pack", &LayerTable::pack, py::arg("weights"), py::arg("out"), py::arg("base") = py::none(), release)
      .def("blend_", &LayerTable::blend_, py::arg("center"), py::arg("pull"), py::arg("distances") = py::none(),
           py::arg("tells_autograd") = true, release)
      .def_property_readonly("numel", &LayerTable::numel);
  py::class_<StepTable>(m, "StepTable")
      .def(py::init<const std::string&, std::vector<at::Tensor>, std::vector<int64_t>>(), py::arg("algorithm"),
           py::arg("params"), py::arg("groups"))
      .def("set_targets", &StepTable::set_targets, py::arg("norm_rows"), py::arg("centers"), py::arg("wire_strides"))
      .def("step", step, py::arg("state"), py::arg("hyperparameters"), py::arg("pull"), py::arg("norms") = py::none(),
           py::arg("grad_scale") = py::none(), py::arg("found_inf") = py::none());
}
