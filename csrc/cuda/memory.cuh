#pragma once

#include <cstdint>

// All accesses to memory that the language has no words for, as instructions. A test on the host replaces this file.
namespace grawa::cuda {

// Written out, since the compiler splits words that it knows to be made of elements, and since the intrinsics for the
// same order these accesses among each other. A thread reads no place after it has written it. What streams by leaves
// the first-level cache to the table, which the next block of the multiprocessor reads again.
__device__ inline uint4 load_word(const uint4* from) {
  uint4 word;
#if __CUDA_ARCH__ >= 800
  asm("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
#else
  asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
#endif
      : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
      : "l"(__cvta_generic_to_global(from)));
  return word;
}

__device__ inline void store_word(uint4* to, const uint4& word) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(word.x), "r"(word.y),
               "r"(word.z), "r"(word.w)
               : "memory");
}

// Counts up to `last` and from there to 0; returns what was there before. What the block wrote and read before its last
// barrier comes first, for whoever sees the count and then comes to acquire(). atomicInc between two __threadfence()
// would do, and make every block wait for a fence that it does not need and empty its first-level cache.
__device__ inline unsigned release_and_count(unsigned* count, unsigned last) {
  unsigned before;
  asm volatile("atom.release.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(count)), "r"(last)
               : "memory");
  return before;
}

__device__ inline void acquire() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

}  // namespace grawa::cuda
