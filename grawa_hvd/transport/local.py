"""M workers in one process, one thread each: for tests of what workers do together, in milliseconds."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from grawa_hvd.transport.base import Links, MismatchedBuffersError, Transport

T = TypeVar("T")
SECONDS = 30.0  # after which a worker that waits for others gives up


class _World:
    """What the workers of a group share: the sums that they make, by name and by how often it was used before."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.condition = threading.Condition()
        self.buffers: defaultdict[tuple[str, int], dict[int, Tensor]] = defaultdict(dict)
        self.taken: defaultdict[tuple[str, int], set[int]] = defaultdict(set)  # who has what it waited for
        self.absent: set[int] = set()
        self.groups: dict[tuple[str, int], _World] = {}  # by name, and by how often it was asked for before

    def take(self, key: tuple[str, int], rank: int) -> None:
        """Note that a worker has what it waited for; behind the last one nothing of it is kept."""
        self.taken[key].add(rank)
        if len(self.taken[key] | self.absent) == self.size:
            del self.taken[key], self.buffers[key]


class LocalTransport(Transport):
    """One of the M workers of a process; each lives in a thread of its own.

    Args:
        world: made by `run_workers`.
        rank: this worker's number.
        names: of the workers, in messages.
        hosts: the host of each worker.
    """

    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    average, average_name = "average", "'average'"
    leave_early = "call leave()"
    broadcast = "the same seed on all workers"

    def __init__(self, world: _World, rank: int, names: Sequence[int], hosts: Sequence[str]) -> None:
        self._world, self._rank, self._names, self._hosts = world, rank, list(names), list(hosts)
        self._uses: defaultdict[str, int] = defaultdict(int)

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._rank

    @property
    def ranks(self) -> Sequence[int]:
        """The workers by their numbers among all workers."""
        return self._names

    @property
    def is_member(self) -> bool:
        """Whether this worker is in the group."""
        return self._rank >= 0

    def sum_(self, buffer: Tensor, name: str) -> _LocalSum:
        """Hand a buffer in; the sum is made by each worker, in order of rank, when it waits."""
        return _LocalSum(self._world, self._hand_in(buffer, name), buffer, self._rank)

    def gather_neighbors(self, buffer: Tensor, links: Links, name: str) -> _LocalGathering:
        """Hand a buffer in; each worker that receives it takes it when it waits."""
        sent = len(links.targets(self._rank)) * buffer.numel() * buffer.element_size()
        key = self._hand_in(buffer, f"{name}.neighbors")
        return _LocalGathering(self._world, key, buffer, links.sources[self._rank], sent, self._rank)

    def _hand_in(self, buffer: Tensor, name: str) -> tuple[str, int]:
        key = (name, self._uses[name])
        self._uses[name] += 1
        with self._world.condition:
            self._world.buffers[key][self._rank] = buffer.clone()
            self._world.condition.notify_all()
        return key

    def leave(self) -> None:
        """Be absent from now on, as a rank that has joined: zeros to every sum."""
        with self._world.condition:
            self._world.absent.add(self._rank)
            self._world.condition.notify_all()

    def subgroup(self, workers: Sequence[int]) -> LocalTransport:
        """Some of the workers; asked for again, a group of its own."""
        name = f"group {list(workers)}"
        key = (name, self._uses[name])
        self._uses[name] += 1
        with self._world.condition:
            world = self._world.groups.setdefault(key, _World(len(workers)))
        rank = workers.index(self._rank) if self._rank in workers else -1
        return LocalTransport(world, rank, [self._names[w] for w in workers], [self._hosts[w] for w in workers])

    def host(self) -> str:
        """The host that `run_workers` was told."""
        return self._hosts[self._rank]


class _LocalSum:
    def __init__(self, world: _World, key: tuple[str, int], buffer: Tensor, rank: int) -> None:
        self._world, self._key, self._buffer, self._rank = world, key, buffer, rank
        self._is_over = False

    def done(self) -> bool:
        return self._is_over or len(self._world.buffers[self._key]) + len(self._world.absent) >= self._world.size

    def wait(self) -> None:
        with self._world.condition:
            if not self._world.condition.wait_for(self.done, SECONDS):
                raise TimeoutError(f"{self._key}: only {sorted(self._world.buffers[self._key])} came")
            parts = [part for _, part in sorted(self._world.buffers[self._key].items())]
            self._world.take(self._key, self._rank)
            self._is_over = True
        if len({part.shape for part in parts}) > 1:
            raise MismatchedBuffersError(f"{self._key}: {[part.numel() for part in parts]} elements")
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        self._buffer.copy_(total)


class _LocalGathering:
    def __init__(
        self, world: _World, key: tuple[str, int], buffer: Tensor, sources: list[int], sent: int, rank: int
    ) -> None:
        self._world, self._key, self._buffer, self._sources, self.bytes = world, key, buffer, sources, sent
        self._rank, self._is_over = rank, False

    def done(self) -> bool:
        return self._is_over or self._world.buffers[self._key].keys() >= set(self._sources)

    def wait(self) -> Tensor:
        with self._world.condition:
            if not self._world.condition.wait_for(self.done, SECONDS):
                raise TimeoutError(f"{self._key}: only {sorted(self._world.buffers[self._key])} came")
            parts = [self._world.buffers[self._key][source] for source in self._sources]
            self._world.take(self._key, self._rank)
            self._is_over = True
        return torch.stack(parts) if parts else self._buffer.new_empty(0, self._buffer.numel())


def run_workers(size: int, work: Callable[[LocalTransport], T], hosts: Sequence[str] | None = None) -> list[T]:
    """Let so many workers do the same, each in a thread of its own; their results, in order of rank.

    Args:
        size: M, at least 1.
        work: what each does, given its transport.
        hosts: the host of each; all on one host if None.

    Raises:
        Exception: what the worker of the lowest rank that failed raised; the others are told that it is absent.
    """
    world = _World(size)
    transports = [LocalTransport(world, rank, range(size), hosts or ["here"] * size) for rank in range(size)]

    def run(transport: LocalTransport) -> T:
        try:
            return work(transport)
        except BaseException:
            transport.leave()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, transport) for transport in transports]
    return [future.result() for future in futures]
