"""How often the host waits for the device: never in a local step, once in a round, to read the rows of all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from host_reads import HostReads
from models import loss_of, mlp, sgd, wrap
from torch import nn

import grawa_hvd

pytestmark = pytest.mark.ranks(2)

PERIOD = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "lgrawa": {},
    "grawa": {"averaging": "grawa"},
    "uniform": {"averaging": "uniform"},
    "floor": {"averaging": grawa_hvd.LGRAWA(floor=0.5)},
    "module": {"layers": "module"},
    "momentum": {"outer_momentum": 0.5},
    "half": {"compression": grawa_hvd.Compression.fp16},
    "overlap": {"overlap": 2},
    "fragments": {"fragments": 2},
    "half, fragments": {"compression": grawa_hvd.Compression.fp16, "fragments": 2},
    "hosts": {"local_period": 2},
    "torch's steps": {"fused": False},
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: sgd(model, momentum=0.9),
    "adamw": lambda model: torch.optim.AdamW(model.parameters()),
}


class Run:
    """A model and its optimizer, whose every step is watched."""

    def __init__(self, kind: str = "sgd", **options: Any) -> None:
        self.model, self.watch = mlp(), HostReads()
        self.reports: list[Any] = []
        options = {"period": PERIOD, "on_round": self.reports.append, **options}
        self.optimizer = wrap(self.model, OPTIMIZERS[kind](self.model), **options)
        self.steps = 0

    @property
    def started(self) -> int:
        """Rounds, those under way and those within hosts included."""
        return int(self.optimizer._worker.member.rounds) + sum(report.within_host for report in self.reports)

    def step(self) -> tuple[list[str], list[str]]:
        """One training step; what made the host wait, the report of a loss included."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model, self.steps)
        loss.backward()
        with self.watch:
            self.optimizer.report(loss=loss, accuracy=loss, samples=8)
            self.optimizer.step()
        self.steps += 1
        return self.watch.taken()


def are_of_rows(reads: list[str]) -> list[bool]:
    return [read.startswith("cpu, transfer.py:") for read in reads]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_local_step_reads_nothing_and_a_round_reads_once(options: dict[str, Any], kind: str) -> None:
    run = Run(kind, **options)
    run.step()  # the workers meet, and torch makes the optimizer's state
    for _ in range(4 * PERIOD):
        before = run.started
        reads, uploads = run.step()
        assert are_of_rows(reads) == [True] * (run.started - before), reads
        assert uploads == []
    assert run.started >= 4


@pytest.mark.parametrize(("kind", "reads"), [("sgd", []), ("adamw", ["__bool__, amp.py"])])
def test_under_a_grad_scaler_only_a_count_on_the_host_makes_a_step_read_whether_it_overflowed(
    kind: str, reads: list[str]
) -> None:
    run = Run(kind, period=100)
    run.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss_of(run.model, 1)).backward()
    with run.watch:
        scaler.step(run.optimizer)
    found, uploads = run.watch.taken()
    assert [read.partition(":")[0] for read in found] == reads
    assert uploads == []


def test_workers_that_meet_at_the_start_read_the_rows_and_what_they_start_from() -> None:
    """Whether parameters are finite. Headers then, for the ranks do not know yet that their rows are of one length."""
    reads, uploads = Run().step()
    assert are_of_rows(reads) == [True] * 4, reads
    assert uploads == []


def test_the_consensus_reads_once() -> None:
    run = Run()
    for _ in range(PERIOD + 1):
        run.step()
    with run.watch, run.optimizer.consensus():
        pass
    reads, uploads = run.watch.taken()
    assert are_of_rows(reads) == [True], reads
    assert uploads == []
