#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

// In which order the blocks of a launch come, and the threads of a block that could run on: a kernel must not depend
// on it.
namespace emulator {

class Order {
 public:
  // "forward", "reversed" or "random", which is the same at every run with a seed.
  Order(const std::string& name, uint64_t seed);

  // 0, 1, … count - 1 as the blocks of a launch come.
  std::vector<int64_t> sequence(int64_t count);

  // Threads that could run on.
  void add(unsigned first, unsigned count);
  bool is_empty() const { return next_ == waiting_.size(); }
  unsigned take();

 private:
  bool is_reversed_;
  bool is_random_;
  std::minstd_rand random_;
  std::vector<unsigned> waiting_;
  size_t next_ = 0;
};

}  // namespace emulator
