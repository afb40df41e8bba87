// The pull of all layers toward the center in one launch: each element of x and of the center read once, x written
// once, and the distances from the same pass. 12 bytes per element of float32 with a float32 center, 8 for half types
// with one. At the 4.3 TB/s of a copy on an H200 the floor is 70 us for 100 MB of float32.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/kernels.h"
#include "cuda/multi_tensor.cuh"
#include "cuda/squares.cuh"

namespace grawa::cuda {
namespace {

template <typename X, typename Center, int N>
struct Operands {
  Vec<X, N> x;
  Vec<Center, N> center;
};

template <typename X, typename Center, int N>
__device__ Vec<X, N> moved(const Operands<X, Center, N>& operands, double pull) {
  Vec<X, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    result.at[i] = pulled<X>(cast_to<Arithmetic<X, Center>>(operands.x.at[i]), operands.center.at[i], pull);
  }
  return result;
}

template <typename X, typename Center, bool kHasDistances>
__device__ Partial blend_chunk(X* x, const Center* center, int64_t size, double pull) {
  using Wide = Arithmetic<X, Center>;
  const bool center_aligned = is_aligned(center + head_of(x));
  const auto get = [&](int64_t i, auto width) {
    constexpr int kEach = decltype(width)::value;
    Operands<X, Center, kEach> operands;
    operands.x = load<kEach>(x + i, true);
    operands.center = load<kEach>(center + i, center_aligned);
    return operands;
  };
  SquareSum<Wide> sum;
  for_each_batch<kWidth<X, Center>>(x, size, get, [&](const auto& batch, const auto& places) {
    constexpr int kVectors = sizeof(places) / sizeof(places[0]);
    if constexpr (kHasDistances) {
      constexpr int kEach = sizeof(batch[0].x) / sizeof(X);
      sum.template add_batch<kVectors * kEach>([&](int i) {
        return Gap<Wide>{cast_to<Wide>(batch[i / kEach].center.at[i % kEach]),
                         cast_to<Wide>(batch[i / kEach].x.at[i % kEach])};
      });
    }
    if (pull == 0) return;  // not x + 0 * (c - x), which a NaN in the center would reach
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (places[i] >= 0) store(x + places[i], moved(batch[i], pull));
    }
  });
  return sum.partial();
}

template <typename Center, bool kHasDistances>
__global__ void __launch_bounds__(kThreads)
    blend_kernel(View view, Scalars pulls, const Center* center, Scalars distances) {
  const Chunk chunk = find_chunk(view);
  const double pull = pulls.read(chunk.layer);
  if (!kHasDistances && pull == 0) return;
  Partial partial;
  dispatch(chunk.dtype, [&](auto type) {
    using X = typename decltype(type)::type;
    X* x = static_cast<X*>(chunk.data) + chunk.begin;
    partial = blend_chunk<X, Center, kHasDistances>(x, center + chunk.flat, chunk.size, pull);
  });
  if constexpr (kHasDistances) finish_norm(view, chunk, partial, distances);
}

template <typename Center>
void launch(const Table& table, const View& view, const at::Tensor& center, const Scalars& pulls,
            const OptionalTensor& distances) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto from = static_cast<const Center*>(center.const_data_ptr());
  if (distances.has_value()) {
    blend_kernel<Center, true><<<table.chunks(), kThreads, 0, stream>>>(view, pulls, from, write_scalars(*distances));
  } else {
    blend_kernel<Center, false><<<table.chunks(), kThreads, 0, stream>>>(view, pulls, from, Scalars{});
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

void blend(Table& table, const at::Tensor& center, const at::Tensor& pull, const OptionalTensor& distances) {
  check_blend(facts_of(table), center, pull, distances);
  if (distances.has_value()) mark_written(*distances);
  if (table.chunks() == 0) return;
  const c10::cuda::CUDAGuard guard(table.device());
  const at::Tensor plain_pull = pull.resolve_neg();
  const Table::Lease lease = table.lease();
  dispatch(static_cast<int32_t>(center.scalar_type()), [&](auto type) {
    launch<typename decltype(type)::type>(table, lease.view, center, read_scalars(plain_pull), distances);
  });
}

}  // namespace grawa::cuda
