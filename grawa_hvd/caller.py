"""The user's line that called into this package, for a warning to point at."""

from __future__ import annotations

import sys

OURS = ("grawa_hvd", "torch", "contextlib")


def stacklevel() -> int:
    """What `warnings.warn`, called where this is called, needs to point at the nearest line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    return level
