#include "order.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "report.h"

namespace emulator {

Order::Order(const std::string& name, uint64_t seed)
    : is_reversed_(name == "reversed"), is_random_(name == "random"), random_(seed + 1) {
  if (!is_reversed_ && !is_random_ && name != "forward") fail("no order is called " + name);
}

std::vector<int64_t> Order::sequence(int64_t count) {
  std::vector<int64_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  if (is_reversed_) std::reverse(numbers.begin(), numbers.end());
  if (is_random_) std::shuffle(numbers.begin(), numbers.end(), random_);
  return numbers;
}

void Order::add(unsigned first, unsigned count) {
  for (unsigned i = 0; i < count; ++i) waiting_.push_back(is_reversed_ ? first + count - 1 - i : first + i);
}

unsigned Order::take() {
  if (is_random_) std::swap(waiting_[next_], waiting_[next_ + random_() % (waiting_.size() - next_)]);
  const unsigned thread = waiting_[next_++];
  if (is_empty()) {
    waiting_.clear();
    next_ = 0;
  }
  return thread;
}

}  // namespace emulator
