#pragma once

#include <cstddef>

// The memory of the emulated device: part of the host's, so arranged that a kernel that leaves its bounds is caught.
namespace emulator {

// 16-byte aligned, and it ends where memory that may not be touched begins. Filled with NaNs.
void* take_device_memory(size_t bytes);
// It may not be touched after that, and is never given out again.
void release_device_memory(void* place);

bool is_device_memory(const void* place);

}  // namespace emulator
