"""Averaging policies: from what the workers observed to the weights of their average. Pure functions of tensors.

A policy says how workers are scored and what weight a score earns. To write one, derive from `Averaging`, override
`scores` (and `weights`, where inverse proportionality is not what is wanted), and pass it as `averaging=`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from grawa_hvd.averaging.weights import inverse_weights
from grawa_hvd.caller import stacklevel
from grawa_hvd.description import described_fields
from grawa_hvd.errors import AllWorkersDivergedError

if TYPE_CHECKING:
    from grawa_hvd.rounds.outer import OuterFactory
    from grawa_hvd.rounds.pull import Pull


class Column(Enum):
    """What workers tell each other of every layer, if the policy needs it; in this order."""

    NORMS = "norms"
    DISPLACEMENTS = "displacements"


@dataclass(frozen=True)
class Observed:
    """What the workers tell each other at a round; M workers, L layers, all float64 in the host's memory.

    Of a worker that is left out all is NaN.

    Attributes:
        usable: which workers are not left out, bool, [M].
        norms: estimated gradient norms ê, [M, L]; 0 where a layer had no gradient, and for a policy that does not need
            them.
        displacements: distances from the last centre, ‖x − c‖, [M, L]; 0 where there is none, in layers that a
            fragment's round does not average, and for a policy that does not need them.
        losses: mean loss that each worker reported since the last round, [M]; NaN where none was reported.
        accuracies: likewise the mean accuracy, [M].
        samples: likewise the number of samples processed, [M].
        fragment: which part of the model the round is of; 0 where it is averaged whole.
    """

    usable: Tensor
    norms: Tensor
    displacements: Tensor
    losses: Tensor
    accuracies: Tensor
    samples: Tensor
    fragment: int = field(default=0, kw_only=True)

    def of(self, workers: list[int]) -> Observed:
        """The same of some workers alone, in that order."""
        if workers == list(range(len(self.usable))):
            return self
        return self._of_each(lambda values: values[workers])

    def without(self, left_out: Tensor) -> Observed:
        """The same with NaN in the rows of some workers, bool, [M]."""
        told = self._of_each(lambda values: values.masked_fill(left_out.view(-1, *[1] * (values.dim() - 1)), torch.nan))
        return replace(told, usable=self.usable)

    def in_layers(self, layers: list[int]) -> Observed:
        """The same with displacements 0 in other layers than some, which a fragment's round averages."""
        others = torch.ones(self.displacements.shape[1], dtype=torch.bool)
        others[layers] = False
        displacements = torch.where(others & self.usable[:, None], 0.0, self.displacements)
        return replace(self, displacements=displacements)

    def _of_each(self, made: Callable[[Tensor], Tensor]) -> Observed:
        kept: dict[str, Any] = {name: made(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **kept)


class Mixing(NamedTuple):
    """What a policy says of a round.

    Attributes:
        weights: β, [M, L], of one average for all; columns sum to 1. Or, of an exchange with neighbors, [M, M, L] or
            [M, M, 1]: entry [m, j] says how much j counts in m's own average, and sums over j are 1.
        scores: s, [M, L], for the report; NaN in the rows of workers that were left out.
    """

    weights: Tensor
    scores: Tensor

    def of(self, worker: int) -> Tensor:
        """How much each worker counts in the average of one, [M, L]."""
        return self.weights if self.weights.dim() == 2 else self.weights[worker].expand(self.scores.shape)

    @property
    def overall(self) -> Tensor:
        """How much each worker counts in the mean of all workers' averages, [M, L]."""
        return self.weights if self.weights.dim() == 2 else self.weights.mean(dim=0).expand(self.scores.shape)


class Recipe(NamedTuple):
    """All that happens in a round.

    Attributes:
        mix: who counts how much.
        outer: how the centre moves; None: it is replaced by the average.
        pull: how a worker moves; None: the user's `pull` toward the new centre.
        starts_at: when the workers first have a centre: at the "first step" (the parameters there), or when the "first
            round" has averaged them.
        exchange: how models travel: as one "sum" over all workers, or to "neighbors", each of whom has a centre of its
            own.
    """

    mix: Mix
    outer: OuterFactory | None = None
    pull: Pull | None = None
    starts_at: Literal["first step", "first round"] = "first round"
    exchange: Literal["sum", "neighbors"] = "sum"


class Mix(ABC):
    """A policy: who counts how much. `Scored` and `Averaging` go by scores.

    Attributes:
        needs: what it wants to know of every layer.
    """

    needs: ClassVar[frozenset[Column]] = frozenset()

    def check(self, workers: int) -> None:  # noqa: B027
        """Whether so many workers can average by this policy; here always.

        Raises:
            ValueError: if not.
        """

    def describe(self) -> str:
        """What ranks compare before they average: the fields, where tensors stand for their values.

        A policy that holds an object of a class of its own, as a graph, overrides this, or that class has a
        `describe`: of other objects only the class is compared, and of functions the name.
        """
        return described_fields(self)

    def recipe(self) -> Recipe:
        """All that happens in a round by this policy; the weights alone, for nearly all."""
        return Recipe(self)

    def init(self, workers: int, layers: int) -> Any:
        """What the policy remembers from round to round, before the first; nothing, for nearly all.

        A round within a host begins with this too, for its workers, and leaves nothing to remember.
        """
        return ()

    @abstractmethod
    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """Weigh the workers of a round.

        Args:
            observed: the same on every rank.
            state: what `init` returned, or the last call: the same on every rank.

        Returns:
            Weights and scores, and what to remember.

        Raises:
            AllWorkersDivergedError: if no worker is usable.
            ValueError: if scores or weights have a wrong shape, or a score is negative.
        """


@dataclass(frozen=True)
class Scored(Mix):
    """A policy that goes by scores: scores from what was observed, weights from scores."""

    def scores(self, observed: Observed) -> Tensor:
        """Non-negative scores, [M, L]: the smaller, the more weight; NaN where what they go by was not reported."""
        raise TypeError(f"{type(self).__name__} must override scores()")

    def weights(self, scores: Tensor) -> Tensor:
        """Weights β, [M, L], of the scores; columns sum to 1, and a row with NaN gets 0. One row at least is finite."""
        raise TypeError(f"{type(self).__name__} must override weights()")

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """See `Mix`."""
        usable, shape = observed.usable, observed.norms.shape
        if not usable.any():
            raise AllWorkersDivergedError.of(len(usable))
        name = type(self).__name__
        scores = _checked(self.scores(observed), f"{name}.scores", shape)
        if not usable.all():
            scores = scores.masked_fill(~usable[:, None], torch.nan)
        if scores.isfinite().all(dim=1).any():
            return Mixing(_checked(self.weights(scores), f"{name}.weights", shape), scores), state
        warnings.warn(
            f"{name} has a score of none of the {len(usable)} workers, so all weigh alike: has each of them called "
            "optimizer.report() since the last round?",
            stacklevel=stacklevel(),
        )
        equal = usable.to(scores.dtype) / usable.sum()
        return Mixing(equal[:, None].expand(shape), scores), state


@dataclass(frozen=True)
class Averaging(Scored):
    """A policy that weighs workers by the inverse of their scores; norms are what it is told unless `needs` says else.

    Args:
        floor: each score counts as at least `floor` times its column's median; 0 (off) to 1.

    Raises:
        ValueError: if `floor` is outside its range.
    """

    needs: ClassVar[frozenset[Column]] = frozenset({Column.NORMS})
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be from 0 to 1, but is {self.floor!r}")

    def weights(self, scores: Tensor) -> Tensor:
        """β ∝ 1/s.

        Raises:
            ValueError: if a score is negative.
        """
        if (scores < 0).any():
            raise ValueError(f"{type(self).__name__}.scores must be at least 0, but {scores[scores < 0][0]} is one")
        return inverse_weights(scores, self.floor)


def _checked(value: Tensor, name: str, shape: torch.Size) -> Tensor:
    if value.shape != shape:
        raise ValueError(
            f"{name} must return shape {tuple(shape)} [workers, layers], but returned {tuple(value.shape)}"
        )
    return value
