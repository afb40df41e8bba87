#pragma once

#include <cstdint>
#include <vector>

#include "step.h"

namespace grawa {

// Whether layers share memory such that they cannot be stepped at once: only gradients that are read may share it among
// themselves, and centers. Asked at every step, it looks again at what has moved since the last: often the gradients.
class Overlaps {
 public:
  explicit Overlaps(const std::vector<int64_t>& numels) : numels_(numels) {}

  bool found(const std::vector<StepLayer>& layers, bool writes_grads);

 private:
  struct Range {
    const char* begin;
    const char* end;
  };
  // Of a layer: the parameter, its state, the center; and the gradient.
  struct Touched {
    Span lasting[4];
    Span grad;
  };

  bool set_obstacles();
  bool are_grads_apart(bool writes_grads) const;

  std::vector<int64_t> numels_;
  std::vector<Touched> layers_;   // of the last call, if it found nothing
  bool wrote_grads_ = false;      // it, too
  std::vector<Range> obstacles_;  // what no gradient may touch: in the order of addresses, and apart from each other
};

}  // namespace grawa
