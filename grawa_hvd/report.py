"""What a round did, for the user to look at; and what the user tells the policies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

PHASES = ("scores", "waited", "pack", "communicate", "blend")


class Phases:
    """Wall time of the parts of a round on this worker, each a named range of `torch.profiler` too.

    On a GPU the kernels of pack and blend run behind the host: their time shows where the host waits for the device.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block as a part of phase `name`."""
        start = time.perf_counter()
        # A range that nobody looks at would cost as much as some of the phases.
        is_watched: bool = torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
        profiled = record_function(f"grawa.{name}") if is_watched else nullcontext()
        try:
            with profiled:
                yield
        finally:
            self.seconds[name] += time.perf_counter() - start


@dataclass
class RoundReport:
    """One completed round of M workers and L layers.

    Attributes:
        weights: β, [M, L]; columns sum to 1. With neighbors (`Decentralized`) it is this worker's own row of the mixing
            matrix: how much each worker counts in its average.
        scores: s, [M, L]; NaN in the rows of workers that were left out.
        layer_names: L names: those of the fragment where the model is averaged in fragments.
        losses: mean loss that each worker reported since the previous round, [M]; NaN where none was reported.
        bytes: what this worker handed to the collectives.
        distances: ‖x − c‖ of each worker just before its last pull before this round, M numbers: they travel with the
            scores of the next round and cost no message. NaN where there was none, or the worker had diverged.
        phases: seconds on this worker by phase: "scores" (its own made ready), "waited" (for the scores of the others),
            "pack", "communicate" (waited for the sums), "blend".
        within_host: whether the workers of this host averaged among themselves (`local_period`).
        step: this worker's local steps when the round took place.
    """

    weights: Tensor
    scores: Tensor
    layer_names: list[str]
    losses: Tensor
    bytes: int
    distances: list[float]
    phases: dict[str, float]
    within_host: bool = False
    step: int = 0

    @property
    def distance(self) -> float:
        """The mean of `distances` over the workers that have one; NaN in the first round."""
        known = [distance for distance in self.distances if not math.isnan(distance)]
        return sum(known) / len(known) if known else math.nan

    @property
    def seconds(self) -> float:
        """Wall time that the round took from training on this worker, waiting for the others included."""
        return sum(self.phases.values())


OnRound = Callable[[RoundReport], None]


class Reported:
    """What a worker's user reported since the last round: means of losses and accuracies, the sum of samples."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget everything."""
        self._sums = {name: RunningSum() for name in ("loss", "accuracy", "samples")}

    def add(self, **values: float | Tensor | None) -> None:
        """Take in values by name; None is nothing reported.

        A tensor is added where it is, so that reporting never waits for a device.

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
                self._sums[name].add(value.detach().reshape(()))
                continue
            if (name == "accuracy" and not 0 <= value <= 1) or (name == "samples" and value < 0):
                allowed = "from 0 to 1" if name == "accuracy" else "at least 0"
                raise ValueError(f"{name} must be {allowed}, but is {value!r}")
            self._sums[name].add(float(value))

    def state(self) -> dict[str, tuple[float, int]]:
        """For a checkpoint: by name the sum of what was reported, and of how many values."""
        return {name: (float(sum_.total), sum_.count) for name, sum_ in self._sums.items()}

    def load(self, state: dict[str, tuple[float, int] | list[float]]) -> None:
        """Take over what `state` returned; checkpoints of version 1 hold the list of all values instead."""
        pairs = {name: (sum(kept), len(kept)) if isinstance(kept, list) else kept for name, kept in state.items()}
        self._sums = {name: RunningSum(*pairs[name]) for name in self._sums}

    def means(self) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
        """Mean loss, mean accuracy, samples, each where it was reported; NaN where nothing was."""
        loss, accuracy, samples = self._sums.values()
        return loss.mean, accuracy.mean, samples.total if samples.count else math.nan


@dataclass
class RunningSum:
    """A sum of numbers, float64, on the device of those that were tensors."""

    total: float | Tensor = 0.0
    count: int = 0

    @property
    def mean(self) -> float | Tensor:
        """The mean; NaN of no numbers."""
        return self.total / self.count if self.count else math.nan

    def add(self, value: float | Tensor) -> None:
        """Take in a number, or a tensor of no dimension."""
        if isinstance(value, Tensor):
            with torch.inference_mode(False):  # it outlives the block
                self.total = _on(value.device, self.total)
        self.total += value
        self.count += 1


def _on(device: torch.device, number: float | Tensor) -> Tensor:
    if isinstance(number, Tensor):
        return number.to(device, non_blocking=device.type != "cpu")
    return torch.full((), number, dtype=torch.float64, device=device)
