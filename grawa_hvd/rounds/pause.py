"""Where training must not go on: a step there would be lost, or would not end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

CONSENSUS = (
    "inside consensus(), where the parameters are the mean of the workers, and each worker's own again after it: what "
    "training does there would be lost. Leave the block first"
)
SCORES = "in the scores callable, which is to run forward and backward alone"


class Pause:
    """Refuses calls while a worker is in such a place."""

    def __init__(self) -> None:
        self._place = ""

    @contextmanager
    def __call__(self, place: str) -> Iterator[None]:
        """Be in a place, `CONSENSUS` or `SCORES`, inside the block."""
        before, self._place = self._place, place
        try:
            yield
        finally:
            self._place = before

    def refuse(self, call: str) -> None:
        """Whether a method of the optimizer may be called here.

        Raises:
            RuntimeError: if not.
        """
        if self._place:
            raise RuntimeError(f"optimizer.{call}() was called {self._place}")
