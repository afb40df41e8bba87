#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "chunks.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace grawa {

// A fixed list of parameters on one device, and what the operators would find out about it at every call. The order of
// a layer's elements on the wire is that of its memory at construction, and stays so wherever its memory goes later.
class LayerTable {
 public:
  // Wire strides given, for a list that was on another device: one list per parameter, of a dense layout.
  explicit LayerTable(std::vector<at::Tensor> params,
                      std::optional<std::vector<std::vector<int64_t>>> wire_strides = std::nullopt);

  // After the parameters went to another device all of these raise.
  // The same tensor at each call, overwritten; -1 where there is no gradient.
  at::Tensor grad_norms();
  at::Tensor norms();
  void pack(const at::Tensor& weights, const at::Tensor& out, const OptionalTensor& base);
  // Unless autograd is told, a backward whose graph has saved the parameters goes on with what they are then.
  void blend_(const at::Tensor& center, const at::Tensor& pull, const OptionalTensor& distances,
              bool tells_autograd = true);
  int64_t numel() const { return chunks_.numel(); }

 private:
  struct Layer {
    at::Tensor param;
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;  // on the wire
  };

  // What the kernels of a GPU find in its memory: of parameters and of gradients, so that neither replaces the other.
  struct DeviceTables {
    cuda::Table params;
    cuda::Table grads;
  };

  void gather_params(Access access);
  void gather_grads();
  void gather_grads_on_device();
  void write_other_grad_norms();  // of missing and sparse gradients, on the CPU
  at::Tensor empty_norms() const;
  at::ScalarType norm_dtype() const;

  at::Device device_;
  std::vector<Layer> layers_;
  ChunkMap chunks_;
  std::unique_ptr<DeviceTables> tables_;  // none on the CPU
  cpu::Workspace work_;
  bool all_dense_ = true;  // every gradient was there and strided when last gathered
  at::Tensor grad_norms_;
  std::mutex mutex_;  // calls run without the GIL, and share the workspace
};

}  // namespace grawa
