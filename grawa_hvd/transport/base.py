"""What a backend must do for the workers that average with each other. Rows, weights and compression stand above it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class MismatchedBuffersError(Exception):
    """Ranks handed buffers of different length to one sum; raised on all of them."""


class Work(Protocol):
    """A collective under way."""

    def done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> None:
        """Return once the result can be used: on a GPU by what is launched on the current stream after this.

        Raises:
            MismatchedBuffersError: on every rank, if their buffers differ in length and the backend can tell.
        """


@dataclass(frozen=True)
class Links:
    """Who receives from whom; the same on every rank.

    Attributes:
        sources: for each worker the others that it receives from, in order.
        complete: whether all workers are there; one that is absent neither sends nor receives.
    """

    sources: list[list[int]]
    complete: bool = True

    def targets(self, worker: int) -> list[int]:
        """The workers that receive from one, in order."""
        return [other for other, sources in enumerate(self.sources) if worker in sources]


class Gathering(Protocol):
    """The buffers of a worker's neighbors, on their way.

    Attributes:
        bytes: what this worker handed to the backend.
    """

    bytes: int

    def done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> Tensor:
        """The buffers of the workers that this one receives from, [sources, elements], in their order."""


class Transport(ABC):
    """The workers of one optimizer over some backend.

    Attributes:
        dtypes: what sums take as it is.
        equivalents: the backend's own compressors, and which of ours each of them stands for.
        average, average_name: what users may pass as `op=`, and how they write it.
        leave_early, broadcast: for messages, how a rank with less data lets the others go on, and how ranks come to
            start from one model.
    """

    dtypes: ClassVar[frozenset[torch.dtype]]
    equivalents: ClassVar[Mapping[Any, Any]] = {}
    average: ClassVar[Any]
    average_name: ClassVar[str]
    leave_early: ClassVar[str]
    broadcast: ClassVar[str]

    @property
    @abstractmethod
    def rank(self) -> int:
        """This worker's number among the workers, from 0."""

    @property
    @abstractmethod
    def ranks(self) -> Sequence[int]:
        """The workers by the ranks that the user knows."""

    @property
    def size(self) -> int:
        """The number of workers, M."""
        return len(self.ranks)

    @property
    @abstractmethod
    def is_member(self) -> bool:
        """Whether this process is one of the workers; others train alone."""

    def again(self) -> Transport:
        """The same workers, for another optimizer of theirs."""
        return copy.copy(self)

    @property
    def generation(self) -> int:
        """How often the backend has been started anew in this process; here never.

        A new generation may have other workers under other ranks, and what was under way is lost.
        """
        return 0

    @abstractmethod
    def sum_(self, buffer: Tensor, name: str) -> Work:
        """Start the sum of a flat buffer over the workers, in place; an absent rank counts as zeros.

        Args:
            buffer: of one of `dtypes`; the same length on every rank.
            name: the same on every rank; no two sums that are under way at once have the same.
        """

    @abstractmethod
    def gather_neighbors(self, buffer: Tensor, links: Links, name: str) -> Gathering:
        """Start to send a flat buffer to the workers that receive from this one, and to receive theirs.

        All workers that are there call this, also those without neighbors: some backends need it.

        Args:
            buffer: of any type that parameters have; the same length and type on every rank; not written to until its
                buffers have come.
            links: who receives from whom.
            name: see `sum_`.
        """

    @abstractmethod
    def subgroup(self, workers: Sequence[int]) -> Transport:
        """Some of the workers; a collective of all, who ask for the same groups in the same order.

        Raises:
            ValueError: if the backend was started without what it needs for this.
        """

    @abstractmethod
    def host(self) -> str:
        """The name of this worker's host: the same for workers of one host."""

    def label(self, workers: Sequence[int]) -> str:
        """Workers for a message: "rank 2", or "ranks 0, 1"."""
        return named([self.ranks[worker] for worker in workers])

    def check_model(self, parameters: Sequence[Tensor]) -> None:  # noqa: B027
        """Whether these parameters can be averaged over this backend; here always.

        Raises:
            ValueError: if somebody else averages them, or their gradients, over the same workers already.
        """

    def check_subgroups(self) -> None:  # noqa: B027
        """Whether `subgroup` will work, as far as a rank can see by itself; here always.

        Raises:
            ValueError: if it is plain that it will not.
        """

    def attach(self, optimizer: Any) -> None:  # noqa: B027
        """Make the optimizer what the backend wants of it, to let ranks with less data leave early; here nothing."""

    def begin(self) -> None:  # noqa: B027
        """Tell ranks that have left early to follow: an exchange of rows comes next, and what follows from it.

        Here nothing: the backend itself adds zeros for them.
        """

    def join_hook(self, follow: Callable[[], None]) -> Any:
        """What `torch.distributed.algorithms.Join` calls on a rank that has left early.

        Args:
            follow: takes part in what the others do next, with nothing to say.

        Raises:
            ValueError: here, where the backend has another way.
        """
        raise ValueError(f"torch.distributed.algorithms.Join is for torch.distributed: here, {self.leave_early}")


def named(ranks: Sequence[int]) -> str:
    """Ranks for a message: "rank 2", or "ranks 0, 1"."""
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
