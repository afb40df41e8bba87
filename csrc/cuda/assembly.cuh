#pragma once

#include <cstdint>

// All that the kernels say in assembly, so that one file stands in for it where they run on a host: tests/emulator.
namespace grawa::cuda {

// Written out, since the compiler splits words that it knows to be made of elements, and since the intrinsics for the
// same order these accesses among each other. A thread reads no place after it has written it.
__device__ inline uint4 load_word(const uint4* from) {
  uint4 word;
  asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
      : "l"(__cvta_generic_to_global(from)));
  return word;
}

__device__ inline void store_word(uint4* to, const uint4& word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
}

}  // namespace grawa::cuda
