#include "fiber.h"

#include <cstdint>

namespace emulator {

// makecontext passes on numbers of 32 bits.
Fiber::Fiber() : stack_(new char[kStack]) {
  const auto self = reinterpret_cast<uintptr_t>(this);
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStack;
  context_.uc_link = nullptr;
  makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::enter), 2, static_cast<unsigned>(self),
              static_cast<unsigned>(self >> 32));
}

void Fiber::enter(unsigned low, unsigned high) {
  reinterpret_cast<Fiber*>(static_cast<uintptr_t>(high) << 32 | low)->live();
}

void Fiber::live() {
  for (;;) {
    (*work_)();
    work_ = nullptr;
    pause();
  }
}

void Fiber::start(const std::function<void()>& work) { work_ = &work; }

void Fiber::resume() {
  if (_setjmp(outside_) != 0) return;
  if (has_entered_) _longjmp(inside_, 1);
  has_entered_ = true;
  setcontext(&context_);
}

void Fiber::pause() {
  if (_setjmp(inside_) == 0) _longjmp(outside_, 1);
}

}  // namespace emulator
