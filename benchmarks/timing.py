"""What must not disturb a measured call."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of the measured calls."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
