#pragma once

#include <cstring>

#include "language.h"

// What the sources call of the CUDA runtime. A launch is done when it returns, so that all is one stream.
using cudaStream_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice };

inline int cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (!emulator::is_device_memory(to) || emulator::is_device_memory(from)) {
    emulator::fail("a copy from the host to the device has other addresses");
  }
  std::memcpy(to, from, bytes);
  return 0;
}

inline int cudaMemsetAsync(void* place, int byte, size_t bytes, cudaStream_t) {
  if (!emulator::is_device_memory(place)) emulator::fail("memory that is set is not the device's");
  std::memset(place, byte, bytes);
  return 0;
}
