"""A worker of a small model, for tests of what several do together over `transport/local.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers

LR = 0.1


class Learner:
    """One of M workers: two layers in float64, SGD, and gradients that are given by rank and step.

    Args:
        transport: of this worker.
        wrapped: makes the optimizer that is wrapped; SGD if None.
        options: of `DistributedGrawaOptimizer`.
    """

    def __init__(
        self, transport: LocalTransport, wrapped: Callable[..., torch.optim.Optimizer] | None = None, **options: Any
    ) -> None:
        self.rank, self.steps, self.averaging = transport.rank, 0, options.get("averaging", "uniform")
        generator = torch.Generator().manual_seed(7)
        self.model = nn.ParameterList(
            [torch.randn(n, generator=generator, dtype=torch.float64) for n in options.pop("sizes", (5, 3))]
        )
        plain = torch.optim.SGD(self.model.parameters(), lr=LR) if wrapped is None else wrapped(self.model.parameters())
        self.reports: list[grawa_hvd.RoundReport] = []
        self.optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            plain, self.model.named_parameters(), process_group=transport, on_round=self.reports.append,
            **{"averaging": "uniform", "period": 4, "pull": 1.0, "proximity": 0.0, **options},
        )  # fmt: skip

    def step(self, count: int = 1) -> None:
        """Local steps; gradients grow with the rank, so that policies of norms weigh the workers differently."""
        for _ in range(count):
            generator = torch.Generator().manual_seed(1000 * self.rank + self.steps)
            for parameter in self.model:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.grad = (1.0 + self.rank) * drawn
            self.optimizer.report(loss=1.0 + self.rank, accuracy=1 / (1.0 + self.rank), samples=8)
            self.optimizer.step()
            self.steps += 1

    def parameters(self) -> list[Tensor]:
        """A copy of them."""
        return [parameter.detach().clone() for parameter in self.model]

    def flat(self) -> Tensor:
        """All in a row."""
        return torch.cat(self.parameters())

    def center(self) -> Tensor:
        """The centre in a row."""
        return torch.cat([*self.optimizer.center.values()])

    def rounds(self) -> list[int]:
        """The steps at which the rounds so far took place."""
        return [report.step for report in self.reports]


def learn(size: int, work: Callable[[Learner], Any], hosts: Any = None, **options: Any) -> list[Any]:
    """Let so many workers do the same; their results, in order of rank."""
    return run_workers(size, lambda transport: work(Learner(transport, **options)), hosts)


def errors(size: int, work: Callable[[Learner], Any], **options: Any) -> list[tuple[str, str]]:
    """Type and text of what each worker raises; empty where it raises nothing."""

    def caught(learner: Learner) -> tuple[str, str]:
        try:
            work(learner)
        except Exception as error:  # any: the test asks which
            return type(error).__name__, str(error)
        return "", ""

    return learn(size, caught, **options)
