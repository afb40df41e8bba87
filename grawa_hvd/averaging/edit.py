"""EDiT: the less a worker went, the more it counts, and outliers count for nothing (Cheng et al., ICLR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column, Mixing, Observed, Scored


@dataclass(frozen=True)
class EDiT(Scored):
    """The pseudo-gradient penalty of EDiT (arXiv 2412.07210): with the way d[m, l] = ‖x[m, l] − c[l]‖ of a round,

        β[m, l] = softmax over m of −d[m, l] / temperature,

    and a worker is left out of a layer whose d is more than `threshold` standard deviations above its mean, both
    running over the worker's own earlier rounds. Where all workers are outliers, none is left out. Before there is a
    centre, all count alike. The paper's clipping of the averaged step is not part of this. The closest relative of
    LGRAWA.

    Args:
        temperature: in units of d, above 0; 1 in the paper.
        threshold: above 0; 3 in the paper.
        decay: of the running mean and variance, at least 0 and below 1.
        warmup: rounds after the first centre in which nobody is left out, at least 1.

    Raises:
        ValueError: if a value is outside its range.
    """

    needs: ClassVar[frozenset[Column]] = frozenset({Column.DISPLACEMENTS})
    temperature: float = 1.0
    threshold: float = 3.0
    decay: float = 0.98
    warmup: int = 10

    def __post_init__(self) -> None:
        for name in ("temperature", "threshold"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, but is {getattr(self, name)!r}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, but is {self.decay!r}")
        if isinstance(self.warmup, bool) or not isinstance(self.warmup, int) or self.warmup < 1:
            raise ValueError(f"warmup must be an integer of at least 1, but is {self.warmup!r}")

    def init(self, workers: int, layers: int) -> Tensor:
        """Mean, variance, and rounds so far, of each worker's d: zeros, [3, M, L]."""
        return torch.zeros(3, workers, layers, dtype=torch.float64)

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """See `Mix`; what is remembered is what `init` says."""
        way = observed.displacements
        mean, variance, rounds = state
        is_outlier = (rounds >= self.warmup) & (way - mean > self.threshold * variance.sqrt())
        kept = ~is_outlier & way.isfinite()
        is_outlier &= kept.any(dim=0)
        mixing, _ = super().__call__(observed, ())
        weights = self.weights(mixing.scores.masked_fill(is_outlier, torch.inf))
        step = torch.where(rounds > 0, 1 - self.decay, 1.0)
        moved = torch.stack([mean + step * (way - mean), variance + step * ((way - mean) ** 2 - variance), rounds + 1])
        moved[1] = torch.where(rounds > 0, moved[1], 0.0)
        return Mixing(weights, mixing.scores), torch.where(kept & (way > 0), moved, state)

    def scores(self, observed: Observed) -> Tensor:
        """The distances d, [M, L]."""
        return observed.displacements

    def weights(self, scores: Tensor) -> Tensor:
        """The softmax over workers; 0 for a distance that is not finite."""
        return torch.softmax(torch.where(scores.isfinite(), -scores / self.temperature, -torch.inf), dim=0)
