#pragma once

#include <cuda_runtime_api.h>

// In place of csrc/cuda/assembly.cuh: the same functions in C++, which end the process where a GPU would.
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

}  // namespace grawa::cuda
