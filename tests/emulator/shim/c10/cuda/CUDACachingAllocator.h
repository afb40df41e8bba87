#pragma once

#include <c10/core/Allocator.h>

namespace c10::cuda::CUDACachingAllocator {

inline c10::Allocator* get() { return c10::GetAllocator(c10::kCUDA); }

}  // namespace c10::cuda::CUDACachingAllocator
