"""What a backend must do for the workers that average with each other. Rows, weights and compression stand above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

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


class Transport(Protocol):
    """The workers of one optimizer over some backend.

    Attributes:
        dtypes: what sums take as it is.
        equivalents: the backend's own compressors, and which of ours each of them stands for.
        average: the backend's name for an average, which users may pass as `op=`.
    """

    dtypes: frozenset[torch.dtype]
    equivalents: Mapping[Any, Any]
    average: Any

    @property
    def rank(self) -> int:
        """This worker's number among the workers, from 0."""

    @property
    def size(self) -> int:
        """The number of workers, M."""

    @property
    def is_member(self) -> bool:
        """Whether this process is one of the workers; others train alone."""

    def attach(self, optimizer: Any) -> None:
        """Make the optimizer what the backend wants of it, to let ranks with less data leave early."""

    def join_hook(self, follow: Callable[[], None]) -> Any:
        """What the backend calls on a rank that has left early.

        Args:
            follow: takes part in what the others do next, with nothing to say.

        Raises:
            ValueError: if the backend has another way.
        """

    def begin(self) -> None:
        """Tell ranks that have left early to follow: an exchange of rows comes next, and what follows from it."""

    def sum_(self, buffer: Tensor, name: str) -> Work:
        """Start the sum of a flat buffer over the workers, in place; an absent rank counts as zeros.

        Args:
            buffer: of one of `dtypes`; the same length on every rank.
            name: the same on every rank; no two sums that are under way at once have the same.
        """

    def check_model(self, parameters: Sequence[Tensor]) -> None:
        """Whether these parameters can be averaged over this backend.

        Raises:
            ValueError: if somebody else averages them, or their gradients, over the same workers already.
        """

    def check_subgroups(self) -> None:
        """Whether `subgroup` will work, as far as a rank can see by itself.

        Raises:
            ValueError: if it is plain that it will not.
        """

    def subgroup(self, workers: Sequence[int]) -> Transport:
        """Some of the workers; a collective of all, who ask for the same groups in the same order.

        Raises:
            ValueError: if the backend was started without what it needs for this.
        """

    def host(self) -> str:
        """The name of this worker's host: the same for workers of one host."""

    def label(self, workers: Sequence[int]) -> str:
        """Workers for a message, by the ranks that the user knows: "rank 2", or "ranks 0, 1"."""
