"""Weights from what workers report: how much they did, or how well they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Observed, Scored


@dataclass(frozen=True)
class Weighted(Scored):
    """The weight of a worker by what it told `optimizer.report()` since the last round.

    | by | weight |
    |---|---|
    | "samples" | ∝ samples^power: 1 where workers have unequal loads; 2 is tokens²/steps of Decoupled DiLoCo, since all make as many steps |
    | "accuracy" | ∝ accuracy^power: a high power leaves one or two workers, as the numerically best weights do of "When does averaging help?" |
    | "loss" | softmax(−loss / temperature) |
    | a function of `Observed` | ∝ what it returns, [M] or [M, L], at least 0 |

    A worker that has not reported what it takes has no weight.

    Args:
        by: see above.
        power: of samples or accuracy, at least 0.
        temperature: of losses, above 0.

    Raises:
        ValueError: if a value is outside its range; in a round, on every rank, if a function returns something else.
    """  # noqa: E501  (a table)

    by: Literal["samples", "loss", "accuracy"] | Callable[[Observed], Tensor] = "samples"
    power: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.by not in ("samples", "loss", "accuracy") and not callable(self.by):
            raise ValueError(f'by must be "samples", "loss", "accuracy" or a function, but is {self.by!r}')
        if not self.power >= 0:
            raise ValueError(f"power must be at least 0, but is {self.power!r}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, but is {self.temperature!r}")

    def scores(self, observed: Observed) -> Tensor:
        """What was reported, or what the function says."""
        told = {"samples": observed.samples, "loss": observed.losses, "accuracy": observed.accuracies}
        values = self.by(observed) if callable(self.by) else told[self.by]
        workers, layers = observed.norms.shape
        if not isinstance(values, Tensor) or values.shape not in ((workers,), (workers, layers)):
            raise ValueError(f"by must return a tensor of shape [{workers}] or [{workers}, {layers}], not {values!r}")
        wide = (values[:, None] if values.dim() == 1 else values).double().expand(workers, layers)
        if callable(self.by) and not ((wide >= 0) & wide.isfinite())[observed.usable].all():
            raise ValueError(f"by must return finite numbers of at least 0, but returned {values!r}")
        return wide

    def weights(self, scores: Tensor) -> Tensor:
        """Proportional to the powers, or the softmax; alike where all powers are 0."""
        known = scores.isfinite()
        if self.by == "loss":
            return torch.softmax(torch.where(known, -scores / self.temperature, -torch.inf), dim=0)
        values = torch.where(known, scores, 0.0)
        relative = values / values.amax(dim=0).clamp(min=torch.finfo(values.dtype).tiny)
        power = 1.0 if callable(self.by) else self.power
        raised = torch.where(known, relative**power, 0.0)
        total = raised.sum(dim=0)
        return torch.where(total > 0, raised / total, known.to(values.dtype) / known.sum(dim=0))
