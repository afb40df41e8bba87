"""Equal weights: periodic averaging."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Observed, Scored


@dataclass(frozen=True)
class Uniform(Scored):
    """Equal weights, 1/M: periodic averaging; local SGD where `pull` is 1 (Stich, ICLR 2019)."""

    def scores(self, observed: Observed) -> Tensor:
        """All ones."""
        return torch.ones_like(observed.norms)

    def weights(self, scores: Tensor) -> Tensor:
        """The same for all that are usable."""
        usable = scores.isfinite().to(scores.dtype)
        return usable / usable.sum(dim=0)
