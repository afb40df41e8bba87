"""The ways to train that `benchmarks.cluster` runs side by side: one model, one optimizer, one line that differs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn
from torch.nn import functional

import grawa_hvd
from examples.digits import Data

HOROVOD = "hvd.DistributedOptimizer"
ALONE = "no communication"
# Ranks that share processors compute one after the other: 6 of them on each take as long as one with 6 images.
BATCH = 1
# Of the hidden layer on 8 × 8 digits: 64 weights in, a bias, 10 weights out.
PARAMETERS_PER_UNIT = 75
# Gradients of an output add up over the whole width: the step must shrink with it.
LEARNING_RATE_TIMES_WIDTH = 20.0


class Wide(nn.Sequential):
    """One hidden layer: as many parameters as wanted for the least compute, so that communication is what counts."""

    def __init__(self, data: Data, width: int) -> None:
        pixels = data.images[0].numel()
        super().__init__(nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, data.classes))


class Trainee(ABC):
    """A model that one method trains, from the same start as every other.

    Attributes:
        name: of its row in the table.
        steps: of a block: as many as show the method's whole cycle.
    """

    name: str
    steps: int

    def __init__(self, data: Data, width: int) -> None:
        torch.manual_seed(0)
        self._data, self.model = data, Wide(data, width)
        self._batches = self._forever(torch.Generator().manual_seed(1 + hvd.rank()))
        self._rate = LEARNING_RATE_TIMES_WIDTH / width
        self._optimizer = self._wrapped(torch.optim.SGD(self.model.parameters(), lr=self._rate))
        self._start = self.loss()

    def _forever(self, order: torch.Generator) -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(len(self._data.images), generator=order).split(BATCH)

    @abstractmethod
    def _wrapped(self, optimizer: torch.optim.Optimizer) -> Any:
        """The optimizer in the method's wrapper."""

    def block(self) -> float:
        """Train for `steps` steps; the seconds that they took on this rank."""
        start = time.perf_counter()
        for _ in range(self.steps):
            self.step()
        return time.perf_counter() - start

    def step(self) -> None:
        """One local step, with what the method communicates in it."""
        batch = next(self._batches)
        self._optimizer.zero_grad()
        functional.cross_entropy(self.model(self._data.images[batch]), self._data.labels[batch]).backward()
        self._optimizer.step()

    def loss(self) -> float:
        """Of the test images, under the parameters as they stand."""
        with torch.no_grad():
            return functional.cross_entropy(self.model(self._data.test_images), self._data.test_labels).item()

    def fault(self) -> str:
        """What is wrong with the training so far; nothing if nothing is. Not a collective."""
        loss = self.loss()
        # A handful of steps need not make it less; a wrong sum makes it much more.
        return "" if loss < 2 * self._start else f"the loss went from {self._start:.3g} to {loss:.3g}"

    @abstractmethod
    def shared(self) -> list[Tensor]:
        """What must be bitwise the same on every rank."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the cost model has to know of the method."""


class Alone(Trainee):
    """Workers that never communicate: what the compute of a step takes when all ranks share the processors."""

    name, steps = ALONE, 8

    def _wrapped(self, optimizer: torch.optim.Optimizer) -> Any:
        return optimizer

    def shared(self) -> list[Tensor]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"kind": "alone"}


class Gradients(Trainee):
    """`hvd.DistributedOptimizer`, which averages the gradients of every step."""

    steps = 2

    def __init__(self, data: Data, width: int, half: bool = False) -> None:
        self._half = half
        self.name = f"{HOROVOD} fp16" if half else HOROVOD
        super().__init__(data, width)

    def _wrapped(self, optimizer: torch.optim.Optimizer) -> Any:
        compression = hvd.Compression.fp16 if self._half else hvd.Compression.none
        label = "half" if self._half else "whole"
        names = [(f"{label}.{name}", parameter) for name, parameter in self.model.named_parameters()]
        return hvd.DistributedOptimizer(optimizer, names, compression=compression)

    def shared(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.model.parameters()]

    def describe(self) -> dict[str, Any]:
        return {"kind": "gradients", "half": self._half}


@dataclass(frozen=True)
class Options:
    """Of `grawa_hvd.DistributedGrawaOptimizer`: local_period 0 is none, half is `compression=fp16`."""

    period: int
    local_period: int = 0
    half: bool = False
    overlap: int = 0

    @property
    def name(self) -> str:
        """Of a row: the period first."""
        parts = [f"LGRAWA τ = {self.period}"]
        parts += [f"in a host {self.local_period}"] * bool(self.local_period)
        parts += ["fp16"] * self.half + [f"overlap {self.overlap}"] * bool(self.overlap)
        return ", ".join(parts)


class Models(Trainee):
    """Ours: every worker trains alone, and the models are averaged once in a period."""

    def __init__(self, data: Data, width: int, options: Options) -> None:
        self._options, self.name, self.steps = options, options.name, options.period
        super().__init__(data, width)

    def _wrapped(self, optimizer: torch.optim.Optimizer) -> Any:
        options = self._options
        return grawa_hvd.DistributedGrawaOptimizer(
            optimizer, self.model.named_parameters(), averaging="lgrawa", period=options.period,
            overlap=options.overlap, local_period=options.local_period or None,
            compression=grawa_hvd.Compression.fp16 if options.half else grawa_hvd.Compression.none,
        )  # fmt: skip

    def align(self) -> None:
        """Take the steps after which a block begins and ends with nothing under way: a collective.

        A round that overlaps with training starts and finishes within one block; else it would travel while other
        methods are being timed.
        """
        for _ in range(self.steps - self._options.overlap if self._options.overlap else 0):
            self.step()

    def shared(self) -> list[Tensor]:
        return list(self._optimizer.center.values())

    def describe(self) -> dict[str, Any]:
        return {"kind": "models", **asdict(self._options)}


OURS = (
    Options(4), Options(16), Options(32), Options(16, local_period=4), Options(16, half=True),
    Options(16, overlap=8), Options(16, half=True, overlap=8),
)  # fmt: skip
NAMES = [ALONE, HOROVOD, f"{HOROVOD} fp16", *(options.name for options in OURS)]


def trainees(names: list[str], data: Data, width: int) -> list[Trainee]:
    """One of each name, of those in `NAMES`."""
    made: list[Trainee] = []
    for name in names:
        if name == ALONE:
            made.append(Alone(data, width))
        elif name.startswith(HOROVOD):
            made.append(Gradients(data, width, half=name != HOROVOD))
        else:
            made.append(Models(data, width, next(options for options in OURS if options.name == name)))
    return made
