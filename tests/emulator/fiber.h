#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <functional>
#include <memory>

// A thread of a kernel: a stack of its own, run by whoever resumes it until it pauses.
namespace emulator {

class Fiber {
 public:
  Fiber();
  Fiber(const Fiber&) = delete;

  // What the next resume() begins with. The fiber must have finished what it had before.
  void start(const std::function<void()>& work);
  // Returns at the next pause, or when the work is done.
  void resume();
  // Called by the work itself.
  void pause();
  bool is_done() const { return work_ == nullptr; }

 private:
  static constexpr size_t kStack = 128 * 1024;

  static void enter(unsigned low, unsigned high);
  [[noreturn]] void live();

  std::unique_ptr<char[]> stack_;
  ucontext_t context_;  // only to get onto the stack for the first time: it would make a system call at every switch
  jmp_buf inside_;
  jmp_buf outside_;
  bool has_entered_ = false;
  const std::function<void()>* work_ = nullptr;
};

}  // namespace emulator
