"""A transport among workers that live in one thread and take their turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from grawa_hvd.transport.base import Links, Transport


class Turns(Transport):
    """One of M workers: each hands its part in, worker 0 first, and only then do they wait, one after the other.

    Args:
        sums: those that the workers are making, by name.
        handed: buffers for neighbors that they have handed in so far, by name.
        rank: this worker's number.
        workers: M.
    """

    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    average, average_name = "average", "'average'"
    leave_early = "give every worker as many steps"
    broadcast = "one model for all workers"

    def __init__(self, sums: dict[str, _Sum], handed: dict[str, list[Tensor]], rank: int, workers: int) -> None:
        self._sums, self._handed, self._rank, self._workers = sums, handed, rank, workers

    @classmethod
    def of_all(cls, workers: int) -> list[Turns]:
        """One for each of so many workers."""
        sums: dict[str, _Sum] = {}
        handed: dict[str, list[Tensor]] = {}
        return [cls(sums, handed, rank, workers) for rank in range(workers)]

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

    def gather_neighbors(self, buffer: Tensor, links: Links, name: str) -> _Taken:
        """Hand a buffer in, for the workers that receive it to take when they wait."""
        handed = self._handed.setdefault(name, [])
        handed.append(buffer.clone())
        if len(handed) == self._workers:
            del self._handed[name]
        sent = len(links.targets(self._rank)) * buffer.numel() * buffer.element_size()
        return _Taken(handed, links.sources[self._rank], sent)

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


class _Taken:
    """What one worker takes of the buffers of its neighbors."""

    def __init__(self, handed: list[Tensor], sources: list[int], sent: int) -> None:
        self._handed, self._sources, self.bytes = handed, sources, sent

    def done(self) -> bool:
        return all(source < len(self._handed) for source in self._sources)

    def wait(self) -> Tensor:
        assert self.done()
        parts = [self._handed[source] for source in self._sources]
        return torch.stack(parts) if parts else self._handed[0].new_empty(0, self._handed[0].numel())
