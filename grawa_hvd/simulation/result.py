"""What a simulation leaves: models, and the history of how they came about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grawa_hvd.report import RoundReport


@dataclass
class Simulation:
    """A finished run of M workers.

    Attributes:
        state_dict: the plain mean of the workers that have not diverged, for `model.load_state_dict`.
        workers: the workers' own models, stacked: each entry is [M, ...], and its row m is of worker m.
        center: parameter name → where the workers met last; None if there was no round, or each has its own centre.
        losses: of the batches that each worker trained on, [steps, M].
        rounds: the report of each round, as worker 0 has it; see `RoundReport`. `step` says when it was.
        evaluations: (step, what `evaluate` returned) pairs, of the mean of the workers.
        seconds: that it took.
    """

    state_dict: dict[str, Tensor]
    workers: dict[str, Tensor]
    center: dict[str, Tensor] | None
    losses: Tensor
    rounds: list[RoundReport] = field(default_factory=list)
    evaluations: list[tuple[int, Any]] = field(default_factory=list)
    seconds: float = 0.0
