"""A transport between workers that live in one thread and take their turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from grawa_hvd.transport.base import Transport


class Turns(Transport):
    """Sums among M workers: each hands its part in, worker 0 first, and only then do they wait, one after the other.

    Args:
        workers: M.
    """

    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    average, average_name = "average", "'average'"
    leave_early = "give every worker as many steps"
    broadcast = "one model for all workers"

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._sums: dict[str, _Sum] = {}

    @property
    def rank(self) -> int:
        """All workers share this object: who is who, the plan of a round says."""
        return 0

    @property
    def ranks(self) -> Sequence[int]:
        """The workers by their numbers."""
        return range(self._workers)

    @property
    def is_member(self) -> bool:
        """All are."""
        return True

    def sum_(self, buffer: Tensor, name: str) -> _Part:
        """Add one worker's part; the M-th call of a name completes its sum."""
        sum_ = self._sums.setdefault(name, _Sum())
        sum_.add(buffer)
        if sum_.parts == self._workers:
            del self._sums[name]
        return _Part(sum_, buffer, self._workers)

    def subgroup(self, workers: Sequence[int]) -> NoReturn:
        """Not here: rounds within hosts are not simulated."""
        raise ValueError("a simulation has no hosts")

    def host(self) -> str:
        """One for all."""
        return "simulation"


class _Sum:
    """Parts so far, and their sum in order of the workers."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.parts = 0

    def add(self, part: Tensor) -> None:
        self.total = part.clone() if self.total is None else self.total.add_(part)
        self.parts += 1


class _Part:
    """One worker's share in a sum."""

    def __init__(self, sum_: _Sum, buffer: Tensor, workers: int) -> None:
        self._sum, self._buffer, self._workers = sum_, buffer, workers

    def done(self) -> bool:
        return self._sum.parts == self._workers

    def wait(self) -> None:
        assert self.done() and self._sum.total is not None
        self._buffer.copy_(self._sum.total)
