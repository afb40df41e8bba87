#include <ATen/Functions.h>

#include "cpu/block_math.h"
#include "cpu/kernels.h"
#include "cpu/step_math.h"

namespace grawa::cpu {
namespace {

template <typename T>
constexpr at::ScalarType kTypeOf = c10::CppTypeToScalarType<T>::value;

// One operand of a block: the tensor's own memory where that is of the arithmetic type, else a scratch.
template <typename T>
class Operand {
 public:
  explicit Operand(const Span& span) : span_(span) {}

  T* load(int64_t begin, int64_t size) {
    if (span_.data == nullptr) return nullptr;
    place_ = at_element(span_, begin);
    look_ahead(place_, size);
    if (is_type<T>(span_)) return static_cast<T*>(place_);
    convert(scratch_, kTypeOf<T>, place_, span_.dtype, size);
    return scratch_;
  }

  void store(int64_t size) {
    if (span_.data != nullptr && !is_type<T>(span_)) convert(place_, span_.dtype, scratch_, kTypeOf<T>, size);
  }

 private:
  Span span_;
  void* place_ = nullptr;
  T scratch_[kBlock];
};

template <typename T>
SgdFactors<T> factors_of(const StepLayer& layer, const SgdRule& rule) {
  return {rule, layer.lr.value, layer.pull.value};
}

template <typename T>
AdamwFactors<T> factors_of(const StepLayer& layer, const AdamwRule& rule) {
  return {rule, layer.lr.value, layer.pull.value, layer.bias1, layer.bias2_root};
}

bool is_between(double pull) { return pull != 0 && pull != 1; }

static_assert(kBlock % FloatSquares::kPiece == 0);  // or the sums would depend on the blocks

template <typename T, typename Rule>
void update_chunk(const StepLayer& layer, const Rule& rule, int64_t begin, int64_t size, FloatSquares* sums) {
  const auto factors = factors_of<T>(layer, rule);
  Operand<T> param(layer.param), grad(layer.grad), momentum(layer.momentum), square(layer.square),
      center(is_between(layer.pull.value) ? layer.center : Span());
  for (int64_t i = begin; i < begin + size; i += kBlock) {
    const int64_t n = std::min(kBlock, begin + size - i);
    update({param.load(i, n), grad.load(i, n), momentum.load(i, n), square.load(i, n), center.load(i, n), n, sums},
           factors);
    param.store(n);
    momentum.store(n);
    square.store(n);
  }
}

// Gives the squares of the gradients where their norm is wanted, bit for bit those of layer_norms.
Partial update_chunk(const StepLayer& layer, int64_t begin, int64_t size) {
  const bool has_norm = layer.norm_row >= 0;
  if (is_type<double>(layer.param)) {
    std::visit([&](const auto& rule) { update_chunk<double>(layer, rule, begin, size, nullptr); }, *layer.rule);
    return has_norm ? squares(layer.grad, begin, size) : Partial();
  }
  FloatSquares sums;
  std::visit([&](const auto& rule) { update_chunk<float>(layer, rule, begin, size, has_norm ? &sums : nullptr); },
             *layer.rule);
  if (!has_norm || holds_float_sums(sums.total(), size)) return {1, sums.total()};
  return squares(layer.grad, begin, size);
}

template <typename T>
void pull_chunk(const StepLayer& layer, int64_t begin, int64_t size) {
  Operand<T> param(layer.param), center(layer.center);
  for (int64_t i = begin; i < begin + size; i += kBlock) {
    const int64_t n = std::min(kBlock, begin + size - i);
    T* values = param.load(i, n);
    move_toward(values, values, center.load(i, n), static_cast<T>(layer.pull.value), n);
    param.store(n);
  }
}

void pull_chunk(const StepLayer& layer, int64_t begin, int64_t size) {
  if (is_type<double>(layer.param)) {
    pull_chunk<double>(layer, begin, size);
  } else {
    pull_chunk<float>(layer, begin, size);
  }
}

// x + 1 · (c − x) rounds, and a NaN in x would stay.
void set_to_center(const StepLayer& layer, int64_t begin, int64_t size) {
  convert(at_element(layer.param, begin), layer.param.dtype, at_element(layer.center, begin), layer.center.dtype, size);
}

template <typename T>
void unscale_chunk(const Span& span, double inverse, int64_t begin, int64_t size) {
  Operand<T> grad(span);
  for (int64_t i = begin; i < begin + size; i += kBlock) {
    const int64_t n = std::min(kBlock, begin + size - i);
    T* values = grad.load(i, n);
    scale(values, values, static_cast<T>(inverse), n);
    grad.store(n);
  }
}

void unscale_chunk(const Span& grad, double inverse, int64_t begin, int64_t size) {
  if (is_type<double>(grad)) {
    unscale_chunk<double>(grad, inverse, begin, size);
  } else {
    unscale_chunk<float>(grad, inverse, begin, size);
  }
}

class CpuStepper : public Stepper {
 public:
  explicit CpuStepper(const std::vector<int64_t>& numels)
      : chunks_(numels), all_norms_(at::empty({chunks_.layers()}, at::kDouble)) {}

  void step(std::vector<StepLayer>& layers, const StepTensors& tensors) override {
    const bool overflowed = tensors.found_inf.has_value() && read_number(*tensors.found_inf) > 0;
    // GradScaler multiplies by the inverse, too.
    const double inverse = tensors.grad_scale.has_value() ? 1 / read_number(*tensors.grad_scale) : 1;
    if (!overflowed) count_steps(layers);
    work_.partials.assign(chunks_.chunks(), Partial());
    chunks_.for_each([&](int64_t index, const Chunk& chunk) {
      const StepLayer& layer = layers[chunk.layer];
      const bool has_update = !overflowed && layer.has_grad;
      const bool has_center = layer.center.data != nullptr;
      // A chunk of the gradient is still in the cache when it is read again.
      if (has_update && tensors.grad_scale.has_value()) unscale_chunk(layer.grad, inverse, chunk.begin, chunk.size);
      if (has_update) work_.partials[index] = update_chunk(layer, chunk.begin, chunk.size);
      if (has_center && layer.pull.value == 1) {
        set_to_center(layer, chunk.begin, chunk.size);
      } else if (has_center && !has_update && layer.pull.value != 0) {
        pull_chunk(layer, chunk.begin, chunk.size);
      }
    });
    if (tensors.norms.has_value()) write_rows(layers, overflowed, *tensors.norms);
  }

 private:
  void write_rows(const std::vector<StepLayer>& layers, bool overflowed, const at::Tensor& norms) {
    write_norms(chunks_, work_, all_norms_);
    const double* values = all_norms_.const_data_ptr<double>();
    for (size_t i = 0; i < layers.size(); ++i) {
      const bool has_norm = !overflowed && layers[i].has_grad;
      if (layers[i].norm_row >= 0) write_scalar(norms, layers[i].norm_row, has_norm ? values[i] : kNoGradient);
    }
  }

  ChunkMap chunks_;
  Workspace work_;
  at::Tensor all_norms_;
};

}  // namespace

std::unique_ptr<Stepper> make_stepper(const std::vector<int64_t>& numels) {
  return std::make_unique<CpuStepper>(numels);
}

}  // namespace grawa::cpu
