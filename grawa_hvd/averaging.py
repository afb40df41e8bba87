"""Averaging policies: from what the workers observed to the weights of their average. Pure functions of tensors.

A policy says how workers are scored and what weight a score earns. To write one, derive from `Averaging`, override
`scores` (and `weights`, where inverse proportionality is not what is wanted), and pass it as `averaging=`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grawa_hvd.description import described_fields
from grawa_hvd.errors import AllWorkersDivergedError


@dataclass(frozen=True)
class Observed:
    """What the workers tell each other at a round; M workers, L layers, all float64 in the host's memory.

    Attributes:
        norms: estimated gradient norms ê, [M, L]; 0 where a layer had no gradient; zeros throughout for a policy
            that does not use gradients.
        losses: mean loss that each worker reported since the last round, [M]; NaN where none was reported.
        accuracies: likewise the mean accuracy, [M].
        samples: likewise the number of samples processed, [M].
    """

    norms: Tensor
    losses: Tensor
    accuracies: Tensor
    samples: Tensor

    def of(self, workers: list[int]) -> Observed:
        """The same of some workers alone, in that order."""
        return Observed(*(values[workers] for values in vars(self).values()))


def inverse_weights(scores: Tensor, floor: float = 0.0) -> Tensor:
    """Weights inversely proportional to the scores, columns summing to 1: β[m] = (1/s[m]) / Σ_j (1/s[j]).

    Args:
        scores: non-negative, shape [workers, layers]. Rows with NaN or Inf get weight 0; a worker has a finite row.
        floor: see `raise_to_floor`.

    Returns:
        Weights of the same shape and device. Scores of zero share all the weight of their column, which is the limit.
    """
    return _inverse(scores, _present(scores).expand_as(scores), floor)


def inverse_norm_weights(scores: Tensor, floor: float = 0.0) -> Tensor:
    """The same of gradient norms, where zero says nothing (paper, eqs. 2, 4, 7): such a layer is dead, not at its goal.

    Args:
        scores: non-negative gradient-norm scores, shape [workers, layers]. Rows with NaN or Inf get weight 0.
        floor: see `raise_to_floor`.

    Returns:
        Weights of the same shape and device. Zero scores get weight 0, unless a whole column is zero: 1/workers.

    Raises:
        AllWorkersDivergedError: if no worker has a finite score.
    """
    present = _present(scores)
    if not present.any():
        raise AllWorkersDivergedError.of(len(scores))
    informative = present & (scores > 0)
    return _inverse(scores, torch.where(informative.any(dim=0), informative, present), floor)


def _present(scores: Tensor) -> Tensor:
    return scores.isfinite().all(dim=1, keepdim=True)


def _inverse(scores: Tensor, counted: Tensor, floor: float) -> Tensor:
    scores = raise_to_floor(scores, floor, counted)
    # smallest / score lies in [0, 1] whatever the scale of the scores: 1 / score would over- or underflow.
    smallest = torch.where(counted, scores, torch.inf).amin(dim=0)
    ratio = torch.where(scores == smallest, 1.0, smallest / scores)
    inverse = torch.where(counted, ratio, 0.0)
    return inverse / inverse.sum(dim=0)


def raise_to_floor(scores: Tensor, floor: float, counted: Tensor) -> Tensor:
    """Raise each score to at least `floor` times its column's median, which bounds the ratio of weights.

    Args:
        scores: [workers, layers].
        floor: 0 (nothing changes) to 1.
        counted: which of the scores say something, bool, [workers, layers]; the others stay as they are.
    """
    if floor == 0:
        return scores
    median = torch.where(counted, scores, torch.nan).nanquantile(0.5, dim=0)
    return torch.where(counted & (scores < floor * median), floor * median, scores)


@dataclass(frozen=True)
class Averaging:
    """A policy: scores from what was observed, weights from scores.

    A score of zero says nothing where scores are of gradients (`uses_gradients`): a dead layer has zero gradient, and
    would be copied to all workers. Of anything else, as a loss, it is the best that there is.

    Args:
        floor: each score counts as at least `floor` times its column's median; 0 (off) to 1.

    Raises:
        ValueError: if `floor` is outside its range.
    """

    uses_gradients: ClassVar[bool] = True
    floor: float = 0.0

    def __init_subclass__(cls) -> None:
        """Take back an inherited `factors`: what derives from the class that wrote it may weigh otherwise."""
        super().__init_subclass__()
        if "factors" not in vars(cls):
            cls.factors = Averaging.factors  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be from 0 to 1, but is {self.floor!r}")

    def scores(self, observed: Observed) -> Tensor:
        """Non-negative scores, [M, L]: the smaller, the more weight; NaN where what they go by was not reported."""
        raise TypeError(f"{type(self).__name__} must override scores()")

    def weights(self, scores: Tensor) -> Tensor:
        """Weights β, [M, L], of the scores; columns sum to 1, and a row with NaN gets 0. One row at least is finite.

        Raises:
            ValueError: if a score that is not of gradients is negative.
        """
        if self.uses_gradients:
            return inverse_norm_weights(scores, self.floor)
        if (scores < 0).any():
            raise ValueError(f"{type(self).__name__}.scores must be at least 0, but {scores[scores < 0][0]} is one")
        return inverse_weights(scores, self.floor)

    def describe(self) -> str:
        """What ranks compare before they average: the fields, where tensors stand for their values.

        A policy that holds an object of a class of its own, as a graph, overrides this, or that class has a
        `describe`: of other objects only the class is compared, and of functions the name.
        """
        return described_fields(self)

    def factors(self, observed: Observed) -> Tensor | None:
        """Factors w, [M, L], such that the weights are w[m] / Σ_j w[j] and w[m] comes from row m alone; here None.

        A policy that has such factors may say so by writing this: small models are then averaged in one exchange, not
        in two. Where a column of w is 0 throughout, all workers weigh alike. It is not inherited: a class that derives
        from one with factors writes its own, or has none. It is asked for all rows in the host's memory, and for the
        worker's own row where its parameters are.
        """
        return None


def inverse_scores(averaging: Averaging, observed: Observed) -> Tensor | None:
    """Factors of a policy whose weights are inverse to its scores: 1/s, and 0 for s = 0.

    None with a floor, which compares a worker with the others.
    """
    if averaging.floor:
        return None
    scores = averaging.scores(observed)
    return torch.where(scores > 0, 1.0 / scores, 0.0)


@dataclass(frozen=True)
class GRAWA(Averaging):
    """One weight a worker, from the norm of its whole gradient: s = sqrt(Σ_l ê²) (paper, section 4.3, eq. 2)."""

    def scores(self, observed: Observed) -> Tensor:
        """The norm over layers, computed relative to the largest so that squares cannot overflow."""
        norms = observed.norms
        largest = norms.amax(dim=1, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0)
        return ((norms / scale).square().sum(dim=1, keepdim=True).sqrt() * scale).expand_as(norms)

    factors = inverse_scores


@dataclass(frozen=True)
class MGRAWA(Averaging):
    """One weight a worker, from the sum of its layers' gradient norms: s = Σ_l ê (paper, section 5.1, eqs. 3, 4)."""

    def scores(self, observed: Observed) -> Tensor:
        """The sum over layers."""
        return observed.norms.sum(dim=1, keepdim=True).expand_as(observed.norms)

    factors = inverse_scores


@dataclass(frozen=True)
class LGRAWA(Averaging):
    """A weight for each layer of each worker, from that layer's gradient norm: s = ê (paper, section 5.2, eqs. 5–7)."""

    def scores(self, observed: Observed) -> Tensor:
        """The norms themselves."""
        return observed.norms

    factors = inverse_scores


@dataclass(frozen=True)
class Uniform(Averaging):
    """Equal weights, 1/M: periodic averaging; local SGD where `pull` is 1 (Stich, ICLR 2019)."""

    uses_gradients: ClassVar[bool] = False

    def scores(self, observed: Observed) -> Tensor:
        """All ones."""
        return torch.ones_like(observed.norms)

    def factors(self, observed: Observed) -> Tensor:
        """All ones."""
        return torch.ones_like(observed.norms)


POLICIES: dict[str, type[Averaging]] = {"grawa": GRAWA, "mgrawa": MGRAWA, "lgrawa": LGRAWA, "uniform": Uniform}


def policy(averaging: str | Averaging) -> Averaging:
    """The policy that `averaging=` names, or is.

    Raises:
        ValueError: for an unknown name or another type.
    """
    if isinstance(averaging, Averaging):
        return averaging
    if isinstance(averaging, str) and averaging in POLICIES:
        return POLICIES[averaging]()
    allowed = ", ".join(repr(name) for name in POLICIES)
    raise ValueError(f"averaging must be one of {allowed}, or a policy from grawa_hvd.averaging, but is {averaging!r}")
