#pragma once

#include <cstdint>

// All that the kernels say in assembly, so that one file stands in for it where they run on a host: tests/emulator.
namespace grawa::cuda {

// Written out, since the compiler splits words that it knows to be made of elements, and since the intrinsics for the
// same order these accesses among each other. A thread reads no place after it has written it. With no hints: on an
// H200 L1::no_allocate cost kernels that write 5 to 7%, and L2::256B the norms 6%.
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

// Counts up to `last` and from there to 0; returns what was there before. It orders nothing.
__device__ inline unsigned count_relaxed(unsigned* count, unsigned last) {
  unsigned before;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(count)), "r"(last)
               : "memory");
  return before;
}

// Words that blocks leave for each other. Each is whole, and none waits for other memory.
__device__ inline void store_relaxed(uint64_t* to, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "l"(word) : "memory");
}

__device__ inline uint64_t load_relaxed(const uint64_t* from) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(__cvta_generic_to_global(from)) : "memory");
  return word;
}

// What came before a count_relaxed() that this comes before, is before what follows one that it follows.
__device__ inline void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Within 2 of the last place, where a 16-bit result has 2^13 of them or more: a third of the instructions.
__device__ inline float sqrt_approximately(float x) {
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}

__device__ inline float divide_approximately(float x, float y) {
  float quotient;
  asm("div.approx.f32 %0, %1, %2;" : "=f"(quotient) : "f"(x), "f"(y));
  return quotient;
}

}  // namespace grawa::cuda
