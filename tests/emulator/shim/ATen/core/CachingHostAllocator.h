#pragma once

#include <c10/core/CPUAllocator.h>
#include <c10/core/Stream.h>

namespace at {

struct HostAllocator {
  c10::DataPtr allocate(size_t bytes) { return c10::GetCPUAllocator()->allocate(bytes); }
  void record_event(void*, void*, c10::Stream) {}
};

inline HostAllocator* getHostAllocator(c10::DeviceType) {
  static HostAllocator one;
  return &one;
}

}  // namespace at
