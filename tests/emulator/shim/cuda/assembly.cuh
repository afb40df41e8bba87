#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cmath>

// In place of csrc/cuda/assembly.cuh: the same functions in C++, which end the process where a GPU would go wrong.
namespace grawa::cuda {

inline void check_word(const uint4* place) {
  if (reinterpret_cast<uintptr_t>(place) % sizeof(uint4) != 0) emulator::fail("a word is not aligned to 16 bytes");
  if (!emulator::is_device_memory(place)) emulator::fail("a word is not in device memory");
}

inline uint4 load_word(const uint4* from) {
  check_word(from);
  return *from;
}

inline void store_word(uint4* to, const uint4& word) {
  check_word(to);
  *to = word;
}

inline unsigned count_relaxed(unsigned* count, unsigned last) { return atomicInc(count, last); }

// A word that nobody has taken is not overwritten: on a GPU one of the two would be lost, as blocks run at once.
inline void store_relaxed(uint64_t* to, uint64_t word) {
  constexpr uint64_t kNothing = ~uint64_t{0};
  if (*to != kNothing && word != kNothing) emulator::fail("a word goes over one that no block has taken");
  *to = word;
}

inline uint64_t load_relaxed(const uint64_t* from) { return *from; }

// One thread of all runs at a time.
inline void fence() { std::atomic_signal_fence(std::memory_order_seq_cst); }

inline float sqrt_approximately(float x) { return std::sqrt(x); }
inline float divide_approximately(float x, float y) { return x / y; }

}  // namespace grawa::cuda
