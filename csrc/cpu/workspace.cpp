#include "cpu/kernels.h"

namespace grawa::cpu {

int64_t find_overlap(const ChunkMap& chunks, const Workspace& work, const Span& buffer, int64_t buffer_numel) {
  for (int64_t layer = 0; layer < chunks.layers(); ++layer) {
    if (overlap(work.spans[layer], chunks.numel(layer), buffer, buffer_numel)) return layer;
  }
  return -1;
}

void read_scalars(const at::Tensor& tensor, std::vector<double>& values) {
  const at::Tensor source = tensor.resolve_neg();
  const int64_t size = source.size(0);
  const int64_t stride = source.stride(0);
  values.resize(size);
  const auto copy = [&](const auto* data) {
    for (int64_t i = 0; i < size; ++i) values[i] = data[i * stride];
  };
  if (source.scalar_type() == at::kDouble) {
    copy(source.const_data_ptr<double>());
  } else {
    copy(source.const_data_ptr<float>());
  }
}

void write_scalar(const at::Tensor& tensor, int64_t index, double value) {
  const int64_t place = index * tensor.stride(0);
  if (tensor.scalar_type() == at::kDouble) {
    tensor.mutable_data_ptr<double>()[place] = value;
  } else {
    tensor.mutable_data_ptr<float>()[place] = static_cast<float>(value);
  }
}

}  // namespace grawa::cpu
