#pragma once

// A function marked GRAWA_CLONES is compiled for several instruction sets; the one for this processor is chosen when
// the library loads. Clones need ifunc, and a sanitizer runs before the resolvers may.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define GRAWA_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GRAWA_CLONES
#endif
// Without it the templates would be compiled once, for the oldest processor, and called from every clone.
#define GRAWA_INLINE inline __attribute__((always_inline))
