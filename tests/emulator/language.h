#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "device_memory.h"
#include "launch.h"
#include "report.h"

// What nvcc adds to C++, for a compiler that knows none of it.
#define __device__
#define __host__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
// Blocks run one after the other.
#define __shared__ static
#define __CUDA_ARCH_LIST__ 900

#define threadIdx (emulator::here.thread)
#define blockIdx (emulator::here.block)
#define blockDim (emulator::here.block_size)
#define gridDim (emulator::here.grid_size)

// An assumption that does not hold is undefined behaviour on a GPU.
#define __builtin_assume(condition) \
  ((condition) ? static_cast<void>(0) : emulator::fail("an assumption does not hold: " #condition))

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulator {

inline void check_whole_warp(unsigned mask) {
  if (mask != 0xffffffff) fail("a mask of less than a warp is not emulated");
}

template <typename To, typename From>
To bits_of(const From& value) {
  static_assert(sizeof(From) <= sizeof(To));
  To bits{};
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace emulator

using EmulatorSite = std::source_location;

inline void __syncthreads(const EmulatorSite& site = EmulatorSite::current()) { emulator::meet_all(site); }

inline void __syncwarp(unsigned mask = 0xffffffff, const EmulatorSite& site = EmulatorSite::current()) {
  emulator::check_whole_warp(mask);
  emulator::meet_warp(0, site);
}

inline unsigned __ballot_sync(unsigned mask, bool value, const EmulatorSite& site = EmulatorSite::current()) {
  emulator::check_whole_warp(mask);
  const uint64_t* values = emulator::meet_warp(value, site);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(values[lane]) << lane;
  return votes;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, const EmulatorSite& site = EmulatorSite::current()) {
  emulator::check_whole_warp(mask);
  const uint64_t* values = emulator::meet_warp(emulator::bits_of<uint64_t>(value), site);
  return emulator::from_bits<T>(values[(threadIdx.x % 32) ^ lanes]);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, int lanes, const EmulatorSite& site = EmulatorSite::current()) {
  emulator::check_whole_warp(mask);
  const uint64_t* values = emulator::meet_warp(emulator::bits_of<uint64_t>(value), site);
  const unsigned from = threadIdx.x % 32 + lanes;
  return from < 32 ? emulator::from_bits<T>(values[from]) : value;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, const EmulatorSite& site = EmulatorSite::current()) {
  emulator::check_whole_warp(mask);
  return emulator::from_bits<T>(emulator::meet_warp(emulator::bits_of<uint64_t>(value), site)[lane]);
}

// One thread runs at a time, and sees all that others have written.
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned atomicInc(unsigned* place, unsigned last) {
  const unsigned old = *place;
  *place = old >= last ? 0 : old + 1;
  return old;
}

template <typename T>
T atomicAdd(T* place, T value) {
  const T old = *place;
  *place += value;
  return old;
}

template <typename T>
T __ldcg(const T* from) {
  return *from;
}

template <typename T>
T __ldg(const T* from) {
  return *from;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
inline bool __isGlobal(const void* place) { return place == nullptr || emulator::is_device_memory(place); }
inline long long __double_as_longlong(double value) { return emulator::bits_of<long long>(value); }
inline unsigned __float_as_uint(float value) { return emulator::bits_of<unsigned>(value); }
inline int __float_as_int(float value) { return emulator::bits_of<int>(value); }

// At the global scope, as CUDA has them.
using std::isfinite;
using std::isinf;
using std::isnan;
