"""A model that is put elsewhere in mid-run, as the best weights so far are: the centre is to be forgotten."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers

OPTIONS = [
    {"averaging": "uniform", "outer_momentum": 0.7}, {"proximity": 1.0}, {"overlap": 1},
    {"outer_optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.7, momentum=0.9, nesterov=True)},
    {"compression": grawa_hvd.Compression.bf16},
]  # fmt: skip


class Run:
    """One worker's training; period 3."""

    def __init__(self, transport: LocalTransport, start: float, **options: Any) -> None:
        self.rank, self.model = transport.rank, nn.Linear(3, 2)
        self.put(start)
        self.optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.01), self.model.named_parameters(), process_group=transport,
            **{"averaging": "lgrawa", "period": 3, "pull": 1.0, **options},
        )  # fmt: skip

    def put(self, value: float) -> None:
        other = {name: torch.full_like(own, value) for name, own in self.model.state_dict().items()}
        self.model.load_state_dict(other)

    def train(self, steps: range, between: Callable[[], Any] = lambda: None) -> list[Tensor]:
        for step in steps:
            between()
            self.optimizer.zero_grad()
            x = torch.tensor([[1.0, self.rank + 1.0, step % 3]])
            self.model(x).square().sum().backward()
            self.optimizer.step()
        return [parameter.detach().clone() for parameter in self.model.parameters()]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_after_recenter_training_is_that_of_a_run_that_starts_there(options: dict[str, Any]) -> None:
    def moved(transport: LocalTransport) -> list[Tensor]:
        run = Run(transport, 1.0, **options)
        run.train(range(9))
        run.put(-5.0)
        run.optimizer.recenter()
        result = run.train(range(9, 18))
        assert run.optimizer.rounds == 6 - options.get("overlap", 0)  # the last one is under way
        return result

    def fresh(transport: LocalTransport) -> list[Tensor]:
        return Run(transport, -5.0, **copy.copy(options)).train(range(9, 18))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, expected = run_workers(2, moved), run_workers(2, fresh)
    assert all(torch.equal(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))


def test_before_the_first_step_there_is_nothing_to_forget() -> None:
    def work(transport: LocalTransport) -> int:
        run = Run(transport, 1.0)
        run.optimizer.recenter()
        run.train(range(3))
        return run.optimizer.rounds

    assert run_workers(2, work) == [1, 1]


@pytest.mark.parametrize("steps", [4, 6])
@pytest.mark.fault("astray")
def test_a_rank_that_alone_forgets_the_centre_is_an_error_on_all(steps: int) -> None:
    def work(transport: LocalTransport) -> str:
        run = Run(transport, 1.0)
        run.train(range(steps))
        if transport.rank == 1:
            run.optimizer.recenter()
        with pytest.raises(grawa_hvd.RanksOutOfStepError) as error:
            run.train(range(steps, 9))
        return str(error.value)

    assert all(text.startswith("rank 1 loaded a checkpoint, or called recenter()") for text in run_workers(2, work))


def test_a_model_that_was_put_elsewhere_without_it_is_told_of_once() -> None:
    def work(transport: LocalTransport) -> None:
        run = Run(transport, 1.0, averaging="uniform", outer_momentum=0.7)
        run.train(range(9))
        run.put(-5.0)
        run.train(range(9, 24))

    with pytest.warns(UserWarning, match=r"call optimizer.recenter\(\) on every rank") as told:
        run_workers(2, work)
    assert len(told) <= 2  # one a worker


def test_scripts_that_write_to_parameters_and_jump_nowhere_are_left_alone() -> None:
    def work(transport: LocalTransport) -> None:
        run = Run(transport, 1.0)

        def between() -> None:
            with torch.no_grad():
                for parameter in run.model.parameters():
                    parameter.clamp_(-2.0, 2.0)
            with torch.inference_mode(), run.optimizer.consensus():
                pass

        run.train(range(18), between)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_workers(2, work)
