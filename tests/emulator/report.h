#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace emulator {

// A fault of a kernel. What it has left in memory is of no use, so that nothing goes on after it.
[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "emulator: %s\n", what.c_str());
  std::abort();
}

}  // namespace emulator
