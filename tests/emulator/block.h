#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <vector>

#include "fiber.h"
#include "order.h"

// A block of threads: fibers that run one at a time, each until it waits for others.
namespace emulator {

using Site = std::source_location;

// Where a group of threads waits until all of it is there.
struct Meeting {
  unsigned arrived = 0;
  Site site;
};

struct Warp {
  static constexpr unsigned kLanes = 32;

  Meeting meeting;
  std::array<uint64_t, kLanes> given;
  std::array<uint64_t, kLanes> seen;  // what all had given when the last of them came
};

class Block {
 public:
  // Every thread does the work once; returns when all have.
  void run(unsigned threads, const std::function<void()>& work, Order& order);
  // Called by a thread of the block that runs. The site is where the kernel says so.
  void meet_all(const Site& site);
  const std::array<uint64_t, Warp::kLanes>& meet_warp(uint64_t given, const Site& site);

 private:
  void meet(Meeting& meeting, unsigned first, unsigned count, const Site& site);
  void check_all_done() const;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  Meeting meeting_;
  unsigned threads_ = 0;
  Order* order_ = nullptr;
};

}  // namespace emulator
