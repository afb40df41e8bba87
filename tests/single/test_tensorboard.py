"""What a round's report becomes in TensorBoard."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from grawa_hvd.report import PHASES, RoundReport

tensorboard = pytest.importorskip("grawa_hvd.tensorboard")


class Writer:
    """Stands for a SummaryWriter."""

    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}
        self.histograms: dict[str, tuple[Any, int]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag] = (value, step)

    def add_histogram(self, tag: str, values: Any, step: int) -> None:
        self.histograms[tag] = (values, step)


def report(distances: list[float], within_host: bool = False) -> RoundReport:
    weights = torch.tensor([[0.25, 0.75], [0.75, 0.25]], dtype=torch.float64)
    seconds = {phase: 0.5 * number for number, phase in enumerate(PHASES)}
    losses = torch.full((2,), torch.nan)
    return RoundReport(weights, 1 / weights, ["a", "b"], losses, 1000, distances, seconds, within_host, 64)


def test_a_round_is_written_at_its_step() -> None:
    writer = Writer()
    tensorboard.RoundWriter(writer)(report([1.0, 3.0]))
    expected = {"grawa/seconds": 5.0, "grawa/bytes": 1000, "grawa/distance": 2.0}
    expected |= {f"grawa/seconds/{phase}": 0.5 * number for number, phase in enumerate(PHASES)}
    expected |= {"grawa/weight/0": 0.5, "grawa/weight/1": 0.5}
    assert writer.scalars == {tag: (value, 64) for tag, value in expected.items()}
    values, step = writer.histograms["grawa/weights"]
    assert (values.tolist(), step) == ([[0.25, 0.75], [0.75, 0.25]], 64)


def test_a_distance_that_is_not_known_is_not_written() -> None:
    writer = Writer()
    tensorboard.RoundWriter(writer)(report([math.nan, math.nan]))
    assert "grawa/distance" not in writer.scalars
    assert "grawa/bytes" in writer.scalars


def test_rounds_within_a_host_stand_apart() -> None:
    writer = Writer()
    tensorboard.RoundWriter(writer)(report([1.0, 3.0], within_host=True))
    assert all(tag.startswith("grawa/host/") for tag in [*writer.scalars, *writer.histograms])


def test_a_rank_without_a_writer_writes_nothing() -> None:
    tensorboard.RoundWriter(None)(report([1.0, 3.0]))
