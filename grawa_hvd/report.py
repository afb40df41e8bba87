"""What a round did, for the user to look at; and what the user tells the policies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class RoundReport:
    """One completed round of M workers and L layers.

    Attributes:
        weights: β, [M, L]; columns sum to 1.
        scores: s, [M, L]; NaN in the rows of workers that were left out.
        layer_names: L names.
        losses: mean loss that each worker reported since the previous round, [M]; NaN where none was reported.
        bytes: what this worker handed to the collectives.
        step: this worker's local steps when the round took place.
        seconds: wall time of the round on this worker, waiting for the others included.
    """

    weights: Tensor
    scores: Tensor
    layer_names: list[str]
    losses: Tensor
    bytes: int
    _distance: Tensor = field(repr=False)
    step: int = 0
    seconds: float = 0.0

    @property
    def distance(self) -> float:
        """The mean over workers of ‖x − c‖ just before they were pulled, of workers that took part."""
        return float(self._distance)


class Reported:
    """What a worker's user reported since the last round: means of losses and accuracies, the sum of samples."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._values: dict[str, list[float | Tensor]] = {"loss": [], "accuracy": [], "samples": []}

    def add(self, **values: float | Tensor | None) -> None:
        """Take in values by name; None is nothing reported.

        A tensor is read only at the next round, so that reporting never waits for a device.

        Raises:
            ValueError: if a tensor has more than one element, or a number is out of range: an accuracy outside
                [0, 1], a negative number of samples.
        """
        for name, value in values.items():
            if value is None:
                continue
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ValueError(f"{name} must be one number, but is a tensor of shape {tuple(value.shape)}")
                self._values[name].append(value.detach().clone())
                continue
            if (name == "accuracy" and not 0 <= value <= 1) or (name == "samples" and value < 0):
                allowed = "from 0 to 1" if name == "accuracy" else "at least 0"
                raise ValueError(f"{name} must be {allowed}, but is {value!r}")
            self._values[name].append(float(value))

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint: what was reported, as plain numbers."""
        return {name: [float(value) for value in values] for name, values in self._values.items()}

    def load(self, state: dict[str, list[float]]) -> None:
        """Take over what `state` returned."""
        self._values = {name: [*state[name]] for name in self._values}

    def row(self) -> list[float]:
        """Mean loss, mean accuracy, samples; NaN where nothing was reported."""
        loss, accuracy, samples = (self._values[name] for name in ("loss", "accuracy", "samples"))
        total = sum(float(number) for number in samples) if samples else math.nan
        return [_mean(loss), _mean(accuracy), total]


def _mean(values: list[float | Tensor]) -> float:
    return sum(float(value) for value in values) / len(values) if values else math.nan
