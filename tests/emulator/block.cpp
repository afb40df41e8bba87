#include "block.h"

#include <cstring>
#include <string>

#include "launch.h"
#include "report.h"

namespace emulator {
namespace {

std::string name_of(const Site& site) { return std::string(site.file_name()) + ":" + std::to_string(site.line()); }

bool is_same(const Site& a, const Site& b) {
  return a.line() == b.line() && std::strcmp(a.file_name(), b.file_name()) == 0;
}

}  // namespace

void Block::run(unsigned threads, const std::function<void()>& work, Order& order) {
  threads_ = threads;
  order_ = &order;
  while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
  warps_.assign((threads + Warp::kLanes - 1) / Warp::kLanes, Warp());
  meeting_ = Meeting();
  for (unsigned thread = 0; thread < threads; ++thread) fibers_[thread]->start(work);
  order.add(0, threads);
  while (!order.is_empty()) {
    here.thread.x = order.take();
    fibers_[here.thread.x]->resume();
  }
  check_all_done();
}

void Block::meet_all(const Site& site) { meet(meeting_, 0, threads_, site); }

const std::array<uint64_t, Warp::kLanes>& Block::meet_warp(uint64_t given, const Site& site) {
  const unsigned lane = here.thread.x % Warp::kLanes;
  Warp& warp = warps_[here.thread.x / Warp::kLanes];
  warp.given[lane] = given;
  if (warp.meeting.arrived + 1 == Warp::kLanes) warp.seen = warp.given;
  meet(warp.meeting, here.thread.x - lane, Warp::kLanes, site);
  return warp.seen;
}

void Block::meet(Meeting& meeting, unsigned first, unsigned count, const Site& site) {
  if (meeting.arrived == 0) meeting.site = site;
  if (!is_same(meeting.site, site)) {
    fail("threads of one group wait at " + name_of(meeting.site) + " and at " + name_of(site));
  }
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    order_->add(first, count);
  }
  fibers_[here.thread.x]->pause();
}

void Block::check_all_done() const {
  const auto check = [](const Meeting& meeting) {
    if (meeting.arrived == 0) return;
    fail(std::to_string(meeting.arrived) + " threads wait at " + name_of(meeting.site) + ", where others never came");
  };
  check(meeting_);
  for (const Warp& warp : warps_) check(warp.meeting);
}

}  // namespace emulator
