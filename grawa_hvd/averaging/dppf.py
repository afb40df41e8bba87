"""DPPF: a push away from the average against the pull toward it (Dimlioglu & Choromanska, arXiv 2507.20424)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Recipe
from grawa_hvd.averaging.uniform import Uniform

NO_WAY = 1e-30  # a distance below this has no direction


@dataclass(frozen=True)
class PullAndPush:
    """The part α − λ/‖x − c‖ of the way to the centre; nothing where the worker stands on it.

    Args:
        alpha: α; push: λ.
    """

    alpha: float
    push: float
    anchor: Literal["new", "old"] = "new"

    def strength(self, workers: int) -> Callable[[Tensor], Tensor]:
        """A function of the distance; negative below λ/α, where the push is stronger."""

        def part(distance: Tensor) -> Tensor:
            return torch.where(distance > NO_WAY, self.alpha - self.push / distance, 0.0)

        return part


@dataclass(frozen=True)
class DPPF(Uniform):
    """The distributed pull-push force: with the plain mean c of the workers,

        x[m] ← x[m] + (α − λ/‖x[m] − c‖)·(c − x[m]).

    The push has the length λ whatever the distance, so workers come to rest about λ/α from their mean: that is the
    width of the valley that they look for. Give the push in units of ‖x‖ over all parameters. The `pull` of the user is
    for rounds within hosts alone.

    Args:
        alpha: α of the pull, above 0 to 1.
        push: λ, at least 0; 0 is the plain mean with a pull of α.

    Raises:
        ValueError: if a value is outside its range.
    """

    alpha: float = 0.5
    push: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 and at most 1, but is {self.alpha!r}")
        if not self.push >= 0:
            raise ValueError(f"push must be at least 0, but is {self.push!r}")

    def recipe(self) -> Recipe:
        """The plain mean, and the two forces."""
        return Recipe(self, pull=PullAndPush(self.alpha, self.push))
