"""A worker that diverged is well after one round, wherever its optimizer keeps state; or it is told that it is not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class Lookahead(torch.optim.Optimizer):
    """Holds another optimizer, and slow weights in a list (Zhang et al., NeurIPS 2019)."""

    def __init__(self, base: torch.optim.Optimizer, every: int) -> None:
        super().__init__(base.param_groups, {"limit": math.inf})
        self.base, self.every, self.steps = base, every, 0
        self.slow = [parameter.detach().clone() for parameter in self.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.base.step()
        self.steps += 1
        if self.steps % self.every == 0:
            for parameter, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                parameter.copy_(slow.lerp_(parameter, 0.5))


class Adaptive(torch.optim.SGD):
    """Keeps its step size in the param group, as D-Adaptation and Prodigy do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        group = self.param_groups[0]
        group["lr"] /= 1 + 0.1 * sum(float(parameter.grad.square().sum()) for parameter in group["params"])
        super().step()


class Hidden(torch.optim.SGD):
    """Keeps state where nobody finds it."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **options)
        sums = torch.zeros(1)
        self.add = lambda value: float(sums.add_(value))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(0.0 * self.add(parameter.grad.sum()))


class Lazy(Hidden):
    """Keeps state in a list that is empty at first."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.sums: list[Tensor] = []
        self.add = self.added

    def added(self, value: Tensor) -> float:
        self.sums[:] = self.sums or [torch.zeros(1)]
        return float(self.sums[0].add_(value))


def diverged_rounds(transport: LocalTransport, make: Callable[[Any], torch.optim.Optimizer]) -> int:
    """In how many of six rounds the second worker was left out, after one NaN in its second gradient."""
    model, rounds = nn.Linear(3, 2), 0
    nn.init.constant_(model.weight, 0.5)
    nn.init.constant_(model.bias, 0.5)

    def count(report: grawa_hvd.RoundReport) -> None:
        nonlocal rounds
        rounds += int(report.weights[1, 0] == 0)

    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        make(model.parameters()), model.named_parameters(), process_group=transport, period=3, averaging="uniform",
        on_round=count,
    )  # fmt: skip
    for step in range(18):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).square().mean()
        (loss * math.nan if (transport.rank, step) == (1, 1) else loss).backward()
        optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return rounds


def sgd(parameters: Any, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=momentum)


@pytest.mark.parametrize(
    "make",
    [
        sgd, lambda parameters: Lookahead(sgd(parameters), 100), lambda parameters: Lookahead(sgd(parameters, 0.0), 2),
        lambda parameters: Lookahead(Lookahead(sgd(parameters), 2), 2),
        lambda parameters: Adaptive(parameters, lr=0.01),
    ],
    ids=["sgd", "inner momentum", "slow weights", "two deep", "number in the group"],
)  # fmt: skip
@pytest.mark.fault("diverged")
def test_a_worker_is_well_after_one_round(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_workers(2, lambda transport: diverged_rounds(transport, make)) == [1, 1]


@pytest.mark.parametrize(("kind", "told"), [(Hidden, "3 rounds in a row"), (Lazy, "Lazy keeps NaN or Inf elsewhere")])
def test_a_worker_whose_state_cannot_be_made_anew_is_told(kind: Any, told: str) -> None:
    with pytest.warns(UserWarning, match=told):
        rounds = run_workers(2, lambda transport: diverged_rounds(transport, lambda p: kind(p, lr=0.01)))
    assert rounds == [6, 6]
