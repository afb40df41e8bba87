#pragma once

#include <cstdint>
#include <functional>
#include <source_location>

// Launches of kernels, and what they see of their place.
namespace emulator {

struct Index {
  unsigned x = 0;
  unsigned y = 0;
  unsigned z = 0;
};

// Of the thread that runs.
struct Here {
  Index thread;
  Index block;
  Index block_size;
  Index grid_size;
};
extern Here here;

// Waits for all threads of the block, or of the warp; of the latter with what each of its 32 gave.
void meet_all(const std::source_location& site);
const uint64_t* meet_warp(uint64_t given, const std::source_location& site);

void run(int64_t blocks, int64_t threads, const std::function<void()>& work);

// `kernel<<<blocks, threads, 0, stream>>>` of the sources.
template <typename Stream, typename... Parameters>
auto configured(void (*kernel)(Parameters...), int64_t blocks, int64_t threads, int /*shared*/, const Stream&) {
  return [=](Parameters... arguments) { run(blocks, threads, [&] { kernel(arguments...); }); };
}

}  // namespace emulator
