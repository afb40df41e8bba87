"""What a type checker knows of a user's script. `make lint` checks it; nothing runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import grawa_hvd
from grawa_hvd import Averaging, Column, Observed


@dataclass(frozen=True)
class LossWeighted(Averaging):
    """A policy as users write them."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def scores(self, observed: Observed) -> Tensor:
        """The losses."""
        return observed.losses[:, None].expand_as(observed.norms)


def train(model: nn.Module) -> None:
    """All that a script does with the optimizer."""
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        averaging=LossWeighted(floor=0.1),
        scores=grawa_hvd.HeldOutScores(lambda: 0.5),
        period=grawa_hvd.QSR(4, 0.2, lr=lambda step: 0.1),
    )
    assert_type(optimizer, grawa_hvd.GrawaOptimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3)
    optimizer.zero_grad()
    optimizer.synchronize()
    with optimizer.skip_synchronize():
        optimizer.step()
    optimizer.report(loss=torch.ones(()), samples=8)
    scheduler.step()
    optimizer.round_now()
    assert_type(optimizer.rounds, int)
    assert_type(optimizer.last_round, "grawa_hvd.RoundReport | None")
    assert_type(optimizer.center, "dict[str, Tensor] | None")
    evaluate(optimizer)
    # Each of these is an error that a checker finds: without it, the ignore is one.
    optimizer.report(loss="low")  # type: ignore[arg-type]
    optimizer.consensus(weights="plain")  # type: ignore[arg-type]
    optimizer.rounds = 3  # type: ignore[misc]
    print(optimizer.last_round.step)  # type: ignore[union-attr]
    grawa_hvd.DistributedGrawaOptimizer(optimizer, periods=3)  # type: ignore[call-arg]


def evaluate(optimizer: grawa_hvd.SupportsAveraging) -> None:
    """What looks at the mean alone."""
    with optimizer.consensus(), optimizer.consensus(weights="last"):
        pass


def tables(parameters: list[Tensor]) -> None:
    """The kernels."""
    table = grawa_hvd.ops.LayerTable(parameters)
    assert_type(table.grad_norms(), Tensor)
    assert_type(table.numel, int)
