"""Equal weights: periodic averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Averaging, Column, Observed


@dataclass(frozen=True)
class Uniform(Averaging):
    """Equal weights, 1/M: periodic averaging; local SGD where `pull` is 1 (Stich, ICLR 2019)."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def scores(self, observed: Observed) -> Tensor:
        """All ones."""
        return torch.ones_like(observed.norms)
