"""EASGD: a moving centre that is tied to the workers by springs (Zhang, Choromanska & LeCun, NeurIPS 2015)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch

from grawa_hvd.averaging.policy import Recipe
from grawa_hvd.averaging.uniform import Uniform


@dataclass(frozen=True)
class Spring:
    """A pull toward the centre as it was before the round, by β/M.

    Args:
        beta: β, from 0 to 1.
    """

    beta: float
    anchor: Literal["new", "old"] = "old"

    def strength(self, workers: int) -> float:
        """α = β/M."""
        return self.beta / workers


@dataclass(frozen=True)
class EASGD(Uniform):
    """Elastic averaging (synchronous EASGD, sections 2 and 3): with α = β/M, and both from the old values,

        x[m] ← x[m] − α·(x[m] − c),   c ← c + α·Σ_m (x[m] − c) = c + β·(mean − c).

    The centre c starts at the parameters of the first step. The `pull` of the user is for rounds within hosts alone.

    Args:
        beta: β, above 0 to 1. The paper's 0.9 is of rounds that are as rare as 64 steps; 0.43 is what the authors of
            GRAWA take (their appendix B).

    Raises:
        ValueError: if `beta` is outside its range.
    """

    beta: float = 0.43

    def __post_init__(self) -> None:
        if not 0 < self.beta <= 1:
            raise ValueError(f"beta must be above 0 and at most 1, but is {self.beta!r}")

    def recipe(self) -> Recipe:
        """The plain mean, a step of β of the centre toward it, and the spring."""
        return Recipe(self, functools.partial(torch.optim.SGD, lr=self.beta), Spring(self.beta), "first step")
