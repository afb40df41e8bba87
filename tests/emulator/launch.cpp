#include "launch.h"

#include <cstdlib>
#include <mutex>
#include <string>

#include "block.h"

namespace emulator {

Here here;

namespace {

std::string setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

Block& block() {
  static Block one;
  return one;
}

Order& order() {
  static Order one(setting("GRAWA_EMULATOR_ORDER", "forward"), std::stoull(setting("GRAWA_EMULATOR_SEED", "0")));
  return one;
}

}  // namespace

void meet_all(const std::source_location& site) { block().meet_all(site); }

const uint64_t* meet_warp(uint64_t given, const std::source_location& site) {
  return block().meet_warp(given, site).data();
}

void run(int64_t blocks, int64_t threads, const std::function<void()>& work) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  here.block_size.x = static_cast<unsigned>(threads);
  here.grid_size.x = static_cast<unsigned>(blocks);
  for (const int64_t place : order().sequence(blocks)) {
    here.block.x = static_cast<unsigned>(place);
    block().run(static_cast<unsigned>(threads), work, order());
  }
}

}  // namespace emulator
