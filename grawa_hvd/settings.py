"""What a user asked for, checked at the door, and told to the other ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grawa_hvd.averaging import Averaging, policy
from grawa_hvd.layers import Groups, validated_groups
from grawa_hvd.schedule import Schedule
from grawa_hvd.scores import Scores, scores_source


@dataclass(frozen=True)
class Settings:
    """The arguments of `DistributedGrawaOptimizer` that govern the averaging; see there."""

    averaging: Averaging
    period: int
    pull: float
    proximity: float
    outer_momentum: float
    scores: Scores
    layers: str
    groups: Groups
    schedule: Schedule
    overlap: int

    def describe(self) -> list[str]:
        """A line each: what ranks must agree on."""
        scores = f"{type(self.scores).__name__}(decay={self.scores.decay})"
        values = {**vars(self), "scores": scores, "averaging": self.averaging.describe()}
        return [f"{name}={value}" for name, value in values.items() if name != "groups"]


def validated_settings(
    averaging: str | Averaging,
    period: int,
    pull: float,
    proximity: float,
    outer_momentum: float,
    scores: str | Callable[[], Any] | Scores,
    layers: str,
    groups: Groups,
    overlap: int = 0,
    fragments: int = 1,
    local_period: int | None = None,
) -> Settings:
    """The settings, once they are known to be right.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    _check_integer("period", period, 1)
    _check_integer("fragments", fragments, 1, period)
    # A fragment's round is over before its next one starts.
    _check_integer("overlap", overlap, 0, period - 1)
    if local_period is not None:
        _check_integer("local_period", local_period, 1, period - 1)
    _check_range("pull", pull, lambda x: 0 <= x <= 1, "from 0 to 1")
    _check_range("proximity", proximity, lambda x: 0 <= x <= period, f"from 0 to the period, {period}")
    _check_range("outer_momentum", outer_momentum, lambda x: 0 <= x < 1, "at least 0 and below 1")
    if layers not in ("parameter", "module"):
        raise ValueError(f'layers must be "parameter" or "module", but is {layers!r}')
    return Settings(
        policy(averaging), period, float(pull), float(proximity), float(outer_momentum), scores_source(scores), layers,
        validated_groups(groups), Schedule(period, fragments, local_period or 0), overlap,
    )  # fmt: skip


def _check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {allowed}, but is {value!r}")


def _check_range(name: str, value: Any, right: Callable[[float], bool], allowed: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not right(value):
        raise ValueError(f"{name} must be {allowed}, but is {value!r}")
