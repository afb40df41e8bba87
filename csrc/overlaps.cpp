#include "overlaps.h"

#include <algorithm>

namespace grawa {
namespace {

struct Piece {
  const char* begin;
  const char* end;
  bool is_written;
};

Piece piece_of(const Span& span, int64_t numel, bool is_written) {
  const char* begin = static_cast<const char*>(span.data);
  const int64_t bytes = begin == nullptr ? 0 : numel * static_cast<int64_t>(c10::elementSize(span.dtype));
  return {begin, begin + bytes, is_written};
}

// Stores the new span; whether it is another.
bool replace(Span& old, const Span& now) {
  const bool is_other = old.data != now.data || old.dtype != now.dtype;
  old = now;
  return is_other;
}

template <typename Range>
void sort_by_address(std::vector<Range>& ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
}

}  // namespace

bool Overlaps::found(const std::vector<StepLayer>& layers, bool writes_grads) {
  bool have_lasting_moved = layers_.size() != layers.size();
  bool have_grads_moved = have_lasting_moved || writes_grads != wrote_grads_;
  layers_.resize(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    const StepLayer& layer = layers[i];
    Touched& last = layers_[i];
    have_lasting_moved |= replace(last.lasting[0], layer.param);
    have_lasting_moved |= replace(last.lasting[1], layer.momentum);
    have_lasting_moved |= replace(last.lasting[2], layer.square);
    have_lasting_moved |= replace(last.lasting[3], layer.center);
    have_grads_moved |= replace(last.grad, layer.grad);
  }
  wrote_grads_ = writes_grads;
  if (!have_lasting_moved && !have_grads_moved) return false;
  if ((!have_lasting_moved || set_obstacles()) && are_grads_apart(writes_grads)) return false;
  layers_.clear();
  return true;
}

// False if they are not apart.
bool Overlaps::set_obstacles() {
  std::vector<Piece> pieces;
  pieces.reserve(4 * layers_.size());
  for (size_t i = 0; i < layers_.size(); ++i) {
    for (int64_t k = 0; k < 4; ++k) {
      const Piece piece = piece_of(layers_[i].lasting[k], numels_[i], k < 3);
      if (piece.begin != piece.end) pieces.push_back(piece);
    }
  }
  sort_by_address(pieces);
  obstacles_.clear();
  bool is_last_written = false;
  for (const Piece& piece : pieces) {
    const bool touches_last = !obstacles_.empty() && piece.begin < obstacles_.back().end;
    if (touches_last && (piece.is_written || is_last_written)) return false;
    is_last_written = piece.is_written;
    if (touches_last) {
      obstacles_.back().end = std::max(obstacles_.back().end, piece.end);
    } else {
      obstacles_.push_back({piece.begin, piece.end});
    }
  }
  return true;
}

bool Overlaps::are_grads_apart(bool writes_grads) const {
  std::vector<Piece> grads;
  // The first obstacle behind a gradient is nearly always that behind the one before.
  auto next = obstacles_.begin();
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Piece grad = piece_of(layers_[i].grad, numels_[i], writes_grads);
    if (grad.begin == grad.end) continue;
    const auto is_free_before = [&] { return next == obstacles_.begin() || std::prev(next)->end <= grad.begin; };
    if (!is_free_before() || (next != obstacles_.end() && next->begin < grad.end)) {
      const auto begins_before_end = [&](const Range& range) { return range.begin < grad.end; };
      next = std::partition_point(obstacles_.begin(), obstacles_.end(), begins_before_end);
      if (!is_free_before()) return false;
    }
    if (writes_grads) grads.push_back(grad);
  }
  sort_by_address(grads);
  const auto overlap = [](const Piece& a, const Piece& b) { return a.end > b.begin; };
  return std::adjacent_find(grads.begin(), grads.end(), overlap) == grads.end();
}

}  // namespace grawa
