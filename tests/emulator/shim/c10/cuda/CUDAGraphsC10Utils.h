#pragma once

#include <cstdlib>

namespace c10::cuda {

enum class CaptureStatus { None, Active };

// No graph is captured, but what is launched while one would be runs at once.
inline CaptureStatus currentStreamCaptureStatusMayInitCtx() {
  return std::getenv("GRAWA_EMULATOR_CAPTURES") == nullptr ? CaptureStatus::None : CaptureStatus::Active;
}

}  // namespace c10::cuda
