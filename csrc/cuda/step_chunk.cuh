#pragma once

#include "cuda/multi_tensor.cuh"
#include "cuda/squares.cuh"
#include "cuda/step_arguments.cuh"

// A chunk of a layer updated, pulled and its gradient squared in one pass, which reads each operand once and writes
// each that changes once. Update is the rule of an optimizer, for one element.
namespace grawa::cuda {

// What a block does with its chunk; the same for all of its threads.
template <typename Wide>
struct StepWork {
  bool is_update;
  bool is_scaled;
  bool has_norm;
  Wide inverse_scale;
  Wide pull;  // 0: none
};

__device__ inline const void* at_element(const void* data, int32_t dtype, int64_t index) {
  const void* place = nullptr;
  dispatch(dtype, [&](auto type) { place = static_cast<const typename decltype(type)::type*>(data) + index; });
  return place;
}

template <typename X, int N, int kStates>
struct StepBatch {
  Vec<X, N> x;
  Vec<X, N> grad;
  Vec<X, N> states[kStates];
  Vec<X, N> center;
};

template <typename X, int N, int kStates>
struct StepResult {
  Vec<X, N> x;
  Vec<X, N> grad;
  Vec<X, N> states[kStates];
};

// The operands of a chunk. They are dealt to the threads as the kernel of norms deals the gradient, so that sums of its
// squares are bitwise the same. Parameter and states are moved in whole words where all lie to 16 bytes as the gradient
// does, as torch's allocations do. The center's layers follow each other without a gap, and may lie as they like.
template <typename X, int kStates>
struct StepChunk {
  static constexpr auto kType = static_cast<int32_t>(c10::CppTypeToScalarType<X>::value);

  X* x;
  X* grad;
  X* states[kStates];
  const void* center;
  int32_t center_dtype;
  bool has_states;
  bool has_center;  // of the parameter's dtype
  bool is_even;
  bool is_center_even;

  __device__ StepChunk(const Chunk& chunk, const StepOperands& operands, const StepWork<Arithmetic<X>>& work)
      : x(static_cast<X*>(chunk.data) + chunk.begin),
        grad(work.is_update ? static_cast<X*>(operands.grad) + chunk.begin : x),
        has_states(work.is_update && operands.states[0] != nullptr) {
    center_dtype = work.pull == 0 ? kType : operands.center_dtype;
    center = work.pull == 0 ? x : at_element(operands.center, center_dtype, chunk.begin);
    has_center = work.pull != 0 && center_dtype == kType;
    is_center_even = lies_as_grad(center);
    is_even = lies_as_grad(x);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      states[k] = has_states ? static_cast<X*>(operands.states[k]) + chunk.begin : x;
      is_even = is_even && lies_as_grad(states[k]);
    }
  }

  __device__ bool lies_as_grad(const void* data) const {
    return reinterpret_cast<uintptr_t>(data) % kWord == reinterpret_cast<uintptr_t>(grad) % kWord;
  }

  template <int N>
  __device__ StepBatch<X, N, kStates> read(int32_t i) const {
    StepBatch<X, N, kStates> batch;
    batch.x = load<N>(x + i, is_even);
    batch.grad = load<N>(grad + i, true);
#pragma unroll
    for (int k = 0; k < kStates; ++k) {
      batch.states[k] = {};
      if (has_states) batch.states[k] = load<N>(states[k] + i, is_even);
    }
    batch.center = {};
    if (has_center) batch.center = load<N>(static_cast<const X*>(center) + i, is_center_even);
    return batch;
  }

  // Of a center of another dtype, which is rare.
  __device__ Arithmetic<X> center_at(int32_t i) const {
    Arithmetic<X> value = 0;
    dispatch(center_dtype, [&](auto type) {
      value = cast_to<Arithmetic<X>>(static_cast<const typename decltype(type)::type*>(center)[i]);
    });
    return value;
  }

  template <int N>
  __device__ void write(int32_t i, const StepResult<X, N, kStates>& result, const StepWork<Arithmetic<X>>& work) const {
    store(x + i, result.x, is_even);
    if (work.is_scaled) store(grad + i, result.grad, true);
    if (has_states) {
#pragma unroll
      for (int k = 0; k < kStates; ++k) store(states[k] + i, result.states[k], is_even);
    }
  }
};

// The step and the norm are of the gradient that is left in memory: unscaled, and rounded.
template <typename X, int N>
__device__ Vec<X, N> unscaled(const Vec<X, N>& grad, const StepWork<Arithmetic<X>>& work) {
  using Wide = Arithmetic<X>;
  if (!work.is_scaled) return grad;
  Vec<X, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    result.set(i, cast_to<X>(cast_to<Wide>(grad[i]) * work.inverse_scale));
  }
  return result;
}

template <typename Update, typename X, int N, typename CenterAt>
__device__ StepResult<X, N, Update::kStates> stepped(const StepBatch<X, N, Update::kStates>& batch,
                                                     const Vec<X, N>& grad, const CenterAt& center_at,
                                                     const StepWork<Arithmetic<X>>& work,
                                                     const typename Update::template Factors<Arithmetic<X>>& factors) {
  using Wide = Arithmetic<X>;
  StepResult<X, N, Update::kStates> result;
  result.grad = grad;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    Wide x = cast_to<Wide>(batch.x[i]);
    Wide states[Update::kStates];
#pragma unroll
    for (int k = 0; k < Update::kStates; ++k) states[k] = cast_to<Wide>(batch.states[k][i]);
    if (work.is_update) x = Update::template updated<X>(x, cast_to<Wide>(grad[i]), states, factors);
#pragma unroll
    for (int k = 0; k < Update::kStates; ++k) result.states[k].set(i, cast_to<X>(states[k]));
    result.x.set(i, work.pull == 0 ? cast_to<X>(x) : pulled<X>(x, center_at(i), work.pull));
  }
  return result;
}

template <typename Update, typename X>
__device__ auto step_chunk(const Chunk& chunk, const StepOperands& operands, const StepWork<Arithmetic<X>>& work,
                           const typename Update::template Factors<Arithmetic<X>>& factors) {
  using Wide = Arithmetic<X>;
  const StepChunk<X, Update::kStates> elements(chunk, operands, work);
  const auto get = [&](int32_t i, auto width) { return elements.template read<decltype(width)::value>(i); };
  SquareSum<Wide> sum;
  const auto use = [&](const auto& batch, const auto& places) {
    constexpr int kEach = std::decay_t<decltype(batch[0].x)>::kCount;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(places) / sizeof(places[0])); ++i) {
      const Vec<X, kEach> grad = unscaled(batch[i].grad, work);
      if (work.has_norm) sum.template add<kEach>([&](int k) { return cast_to<Wide>(grad[k]); });
      if (places[i] < 0) continue;
      const auto own_center = [&](int k) { return batch[i].center[k]; };
      const auto other_center = [&](int k) { return elements.center_at(places[i] + k); };
      if (elements.center_dtype == elements.kType) {
        elements.write(places[i], stepped<Update>(batch[i], grad, own_center, work, factors), work);
      } else {
        elements.write(places[i], stepped<Update>(batch[i], grad, other_center, work, factors), work);
      }
    }
  };
  for_each_batch<kWidth<X>>(elements.grad, chunk.size, get, use);
  return sum.total();
}

}  // namespace grawa::cuda
