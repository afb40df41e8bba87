"""What is learned: data, a model, an optimizer and what counts as good."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from experiments import conditions, digits, text
from experiments.conditions import Condition
from experiments.measures import accuracy, minus_loss

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


@dataclass(frozen=True)
class Task:
    """One model and its data.

    Attributes:
        title: for tables and plots.
        model: makes one.
        load: the data of a split.
        conditions: in which workers differ, by name.
        optimizer: of the local steps, given parameters and `lr=`.
        rates: learning rates, rising; first: the place of that which is tried first.
        rounds: of 32 local steps; batch_size: samples of a step.
        tuning_seeds: of a cell that helps to choose a rate.
        goodness: of outputs and targets of each of M models, [M], more is better; a point is .01 of it.
        chance: of a model that knows nothing.
        least: points, less than which neither helps nor harms.
        told: a mean of it, for tables.
    """

    title: str
    model: Callable[[], nn.Module]
    load: Callable[[int], digits.Data] = digits.load
    conditions: dict[str, Condition] = field(default_factory=lambda: conditions.CONDITIONS)
    optimizer: Callable[..., torch.optim.Optimizer] = MOMENTUM
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
    first: int = 2
    rounds: int = 20
    batch_size: int = 16
    tuning_seeds: int = 5
    goodness: Callable[[Tensor, Tensor], Tensor] = accuracy
    chance: float = 0.1
    least: float = 0.5
    told: str = "{0:.1%}"


THREE = {name: conditions.CONDITIONS[name] for name in ("iid", "skew_0.1", "noisy_3")}
TASKS = {
    "mlp": Task("perceptron on digits", digits.mlp),
    "convolutions": Task(
        "convolutions on digits", digits.convolutions, conditions=THREE, rounds=10, batch_size=8, tuning_seeds=2
    ),
    "text": Task(
        "transformer on text", text.Transformer, text.load, text.CONDITIONS, torch.optim.AdamW,
        rates=(0.001, 0.003, 0.01, 0.03, 0.1), first=2, rounds=10, batch_size=8, tuning_seeds=2,
        goodness=minus_loss, chance=-math.log(text.CHARACTERS), least=1.0, told="{0:.3f} nats",
    ),
    "logistic": Task("logistic regression on digits", digits.logistic),
}  # fmt: skip
