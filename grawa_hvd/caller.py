"""Who called into this package."""

from __future__ import annotations

import sys

OURS = ("grawa_hvd", "torch", "contextlib")


def is_called_by(function: str, module: str, depth: int = 8) -> bool:
    """Whether a function of some module is among the nearest callers of the caller."""
    frame = sys._getframe(2)
    for _ in range(depth):
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def stacklevel() -> int:
    """What `warnings.warn`, called where this is called, needs to point at the nearest line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    return level
