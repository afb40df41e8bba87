// The pull of all layers toward the center in one launch: each element of x and of the center read once, x written
// once, and the distances from the same pass. 12 bytes per element of float32 with a float32 center, 8 for half types
// with one. At the 4.3 TB/s of a copy on an H200 the floor is 70 us for 100 MB of float32.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/finish.cuh"
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
__device__ Vec<X, N> moved(const Operands<X, Center, N>& operands, Arithmetic<X, Center> pull) {
  Vec<X, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    result.set(i, pulled<X>(cast_to<Arithmetic<X, Center>>(operands.x[i]), operands.center[i], pull));
  }
  return result;
}

template <typename X, typename Center, bool kHasDistances>
__device__ auto blend_chunk(X* x, const Center* center, int32_t size, Arithmetic<X, Center> pull) {
  using Wide = Arithmetic<X, Center>;
  const bool center_aligned = is_aligned(center + head_of(x));
  const auto get = [&](int32_t i, auto width) {
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
      constexpr int kEach = std::decay_t<decltype(batch[0].x)>::kCount;
#pragma unroll
      for (const auto& operands : batch) {
        sum.template add<kEach>(
            [&](int i) { return Gap<Wide>{cast_to<Wide>(operands.center[i]), cast_to<Wide>(operands.x[i])}; });
      }
    }
    if (pull == 0) return;  // not x + 0 * (c - x), which a NaN in the center would reach
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (places[i] >= 0) store(x + places[i], moved(batch[i], pull));
    }
  });
  return sum.total();
}

// Blocks of a multiprocessor at once: as many as have room without spilled registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
template <bool kHasDistances>
constexpr int kBlendBlocks = kHasDistances ? 2 : 4;
#else
template <bool kHasDistances>
constexpr int kBlendBlocks = !kHasDistances   ? 4
                             : kHasFastDouble ? 3
                                              : 2;
#endif

// kIsDouble: the arithmetic is.
template <typename Center, bool kHasDistances, bool kIsDouble>
__global__ void __launch_bounds__(kThreads, kBlendBlocks<kHasDistances>)
    blend_kernel(View view, Scalars pulls, const Center* center, Scalars distances) {
  const Chunk chunk = find_chunk(view);
  const double pull = pulls.read(chunk.layer);
  if (!kHasDistances && pull == 0) return;
  std::conditional_t<kIsDouble, Partial, double> sum = {};
  const auto blend = [&](auto type) {
    using X = typename decltype(type)::type;
    X* x = static_cast<X*>(chunk.data) + chunk.begin;
    using Wide = Arithmetic<X, Center>;
    sum = blend_chunk<X, Center, kHasDistances>(x, center + chunk.flat, chunk.size, static_cast<Wide>(pull));
  };
  if constexpr (std::is_same_v<Center, double>) {
    dispatch(chunk.dtype, blend);
  } else {
    if (!is_of_kind<kIsDouble>(chunk.dtype)) return;
    dispatch_kind<kIsDouble>(chunk.dtype, blend);
  }
  if constexpr (kHasDistances) finish_norm(view, chunk, sum, distances);
}

template <bool kIsDouble, typename Center>
void launch(const Table& table, const View& view, const Center* center, const Scalars& pulls,
            const OptionalTensor& distances) {
  const auto stream = c10::cuda::getCurrentCUDAStream();
  if (distances.has_value()) {
    const Scalars norms = write_scalars(*distances);
    blend_kernel<Center, true, kIsDouble><<<table.chunks(), kThreads, 0, stream>>>(view, pulls, center, norms);
  } else {
    blend_kernel<Center, false, kIsDouble><<<table.chunks(), kThreads, 0, stream>>>(view, pulls, center, Scalars{});
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename Center>
void launch_kinds(const Table& table, const View& view, const at::Tensor& center, const Scalars& pulls,
                  const OptionalTensor& distances) {
  const auto from = static_cast<const Center*>(center.const_data_ptr());
  if constexpr (std::is_same_v<Center, double>) {
    launch<true>(table, view, from, pulls, distances);
  } else {
    if (table.kinds().has_narrower) launch<false>(table, view, from, pulls, distances);
    if (table.kinds().has_double) launch<true>(table, view, from, pulls, distances);
  }
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
    launch_kinds<typename decltype(type)::type>(table, lease.view, center, read_scalars(plain_pull), distances);
  });
}

}  // namespace grawa::cuda
