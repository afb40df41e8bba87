"""A transport among workers that live in one thread and take their turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from grawa_hvd.transport.base import Transport


class Turns(Transport):
    """One of M workers: each hands its part in, worker 0 first, and only then do they wait, one after the other.

    Args:
        sums: those that the workers are making, by name.
        rank: this worker's number.
        workers: M.
    """

    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    average, average_name = "average", "'average'"
    leave_early = "give every worker as many steps"
    broadcast = "one model for all workers"

    def __init__(self, sums: dict[str, _Sum], rank: int, workers: int) -> None:
        self._sums, self._rank, self._workers = sums, rank, workers

    @classmethod
    def of_all(cls, workers: int) -> list[Turns]:
        """One for each of so many workers."""
        sums: dict[str, _Sum] = {}
        return [cls(sums, rank, workers) for rank in range(workers)]

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._rank

    @property
    def ranks(self) -> Sequence[int]:
        """The workers by their numbers."""
        return range(self._workers)

    @property
    def is_member(self) -> bool:
        """All are."""
        return True

    def sum_(self, buffer: Tensor, name: str) -> _Part:
        """Add this worker's part; that of the last worker completes the sum."""
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
