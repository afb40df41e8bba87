// In place of the kernels in a build without CUDA: LayerTable is never made for a device without kernels.
#include "cuda/kernels.h"
#include "step.h"

namespace grawa::cuda {

Table::Table(at::TensorList, c10::Device device, bool, int64_t) : device_(device) {
  TORCH_CHECK(false, "this build of grawa_hvd has no kernels for ", device);
}
void Table::set(int64_t, const Span&, int64_t) {}
void Table::set_missing(int64_t) {}
void layer_norms(Table&, const at::Tensor&) {}
void pack(Table&, const at::Tensor&, const at::Tensor&, const OptionalTensor&) {}
void blend(Table&, const at::Tensor&, const at::Tensor&, const OptionalTensor&) {}
std::vector<std::string> architectures() { return {}; }
std::unique_ptr<Stepper> make_stepper(at::TensorList, at::Device) { return nullptr; }

}  // namespace grawa::cuda
