"""The arms of `experiments.convergence`, and their grids: the GRAWA paper's (appendix B.2.3), one set of periods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from grawa_hvd.averaging import DPPF, EASGD, LGRAWA, LSGD, MGRAWA, DiLoCo, EDiT, Mix, Uniform

Setting = dict[str, float]
PERIODS, BATCH = (4, 8, 16, 32), 16


@dataclass(frozen=True)
class Arm:
    """A way to train in parallel.

    Attributes:
        job: of the values of a setting, arguments of `Job`.
        grid: name → values, beside the period.
        averages: "models" or "gradients".
        scores: where norms are taken: "local" or "fresh".
        ascent: ρ of SAM, or 0.
        has_control: whether it is a way to weigh workers: uniform weights with the same setting stand beside it.
    """

    job: Callable[..., dict[str, Any]]
    grid: dict[str, tuple[float, ...]]
    averages: str = "models"
    scores: str = "local"
    ascent: float = 0.0
    has_control: bool = False
    periods: tuple[int, ...] = field(default=PERIODS)

    def settings(self) -> list[Setting]:
        """The whole grid."""
        first = {"period": self.periods} if self.averages == "models" else {}
        grid: dict[str, tuple[float, ...]] = {**first, **self.grid}
        return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]

    def middle(self) -> list[Setting]:
        """With which the learning rate is chosen: period 16 and the middle of the rest; each batch."""
        if self.averages == "gradients":
            return self.settings()
        return [{"period": 16, **{name: values[(len(values) - 1) // 2] for name, values in self.grid.items()}}]


def _weights(policy: Mix, scores: str = "local", has_control: bool = True) -> Arm:
    """A way to weigh workers."""

    def job(pull: float, proximity: float) -> dict[str, Any]:
        return {"averaging": policy, "pull": pull, "proximity": proximity}

    return Arm(job, {"pull": (0.3, 0.5, 0.7), "proximity": (0.01, 0.05)}, scores=scores, has_control=has_control)


def _gradients(ascent: float) -> Arm:
    return Arm(lambda batch: {}, {"batch": (16, 8, 4)}, "gradients", ascent=ascent)


ARMS = {
    "DP+SGD": _gradients(0.0),
    "DP+SAM": _gradients(0.05),
    "EASGD": Arm(lambda beta: {"averaging": EASGD(beta), "proximity": 0.0}, {"beta": (0.1, 0.3, 0.43)}),
    "LSGD": Arm(
        lambda pull, proximity: {"averaging": LSGD(), "pull": pull, "proximity": proximity},
        {"pull": (0.01, 0.1), "proximity": (0.01, 0.1)},
    ),
    "uniform": _weights(Uniform(), has_control=False),
    "MGRAWA": _weights(MGRAWA(floor=0.0), "fresh"),
    "LGRAWA": _weights(LGRAWA(floor=0.0), "fresh"),
    "MGRAWA, local": _weights(MGRAWA(floor=0.0)),
    "LGRAWA, local": _weights(LGRAWA(floor=0.0)),
    "EDiT": _weights(EDiT()),
    "DPPF": Arm(
        lambda alpha, push: {"averaging": DPPF(alpha, push), "proximity": 0.0},
        {"alpha": (0.1, 0.5), "push": (0.05, 0.2)},
    ),
    "DiLoCo": Arm(lambda outer_lr: {"averaging": DiLoCo(outer_lr), "proximity": 0.0}, {"outer_lr": (0.3, 0.7)}),
}


def named(setting: Setting) -> str:
    """For tables and keys."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in setting.items())
