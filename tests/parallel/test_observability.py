"""What a round tells: reports, named ranges in a profile, and the names of its collectives."""

from __future__ import annotations

import math
import os
from typing import Any

import peers
import pytest
import torch
from models import copies, errors, from_all, mlp, train, wrap
from peers import hvd
from torch import nn

import grawa_hvd
from grawa_hvd.report import PHASES
from grawa_hvd.rounds.rows import BEFORE_COLUMNS

pytestmark = pytest.mark.ranks(2)


def told(steps: int = 12, **options: Any) -> tuple[list[Any], nn.Module, Any]:
    model, reports = mlp(), []
    optimizer = wrap(model, **{"period": 4, "on_round": reports.append, **options})
    train(model, optimizer, range(steps))
    return reports, model, optimizer


@pytest.mark.parametrize(
    "options",
    [{}, {"overlap": 2}, {"fragments": 2}, {"compression": grawa_hvd.Compression.fp16}, {"groups": 3}],
    ids=str,
)
def test_the_phases_of_a_round_make_up_its_seconds(options: dict[str, Any]) -> None:
    reports, _, optimizer = told(**options)
    assert len(reports) == optimizer.rounds > 2 - bool(options.get("overlap"))
    assert reports[-1] is optimizer.last_round
    for report in reports:
        assert tuple(report.phases) == PHASES
        assert all(seconds >= 0 for seconds in report.phases.values())
        assert report.seconds == pytest.approx(sum(report.phases.values()))
        assert report.seconds > 0
    # Reports are of one round each: a later one does not change what an earlier one said.
    assert len({tuple(report.phases.values()) for report in reports}) == len(reports)


@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
def test_bytes_are_those_of_the_rows_and_of_the_model(averaging: str) -> None:
    """The first round and, as differences then travel, later ones of an overlapped optimizer: float32."""
    reports, model, _ = told(averaging=averaging, overlap=1)
    row = BEFORE_COLUMNS + (4 if averaging == "lgrawa" else 0)
    elements = sum(parameter.numel() for parameter in model.parameters())
    assert [report.bytes for report in reports] == [peers.size() * 8 * row + 4 * elements] * 2


def test_distances_travel_one_round_late(rank: int) -> None:
    """What a worker sees just before a pull, by hand; the others hear of it in the next round."""
    model, reports, seen = mlp(), [], []
    optimizer = wrap(model, period=2, pull=0.5, proximity=0.0, on_round=reports.append)
    for step in range(8):
        before = None
        train(model, optimizer, [step])
        if step % 2:  # x' = (x + c) / 2, so ‖x − c‖ = 2·‖x' − c‖
            pairs = zip(copies(model), optimizer.center.values(), strict=True)
            before = 2 * math.sqrt(sum(float((x.double() - c.double()).square().sum()) for x, c in pairs))
            seen.append(before)
    by_rank = list(zip(*from_all(seen), strict=True))
    assert all(math.isnan(distance) for distance in reports[0].distances)
    assert math.isnan(reports[0].distance)
    for expected, report in zip(by_rank, reports[1:], strict=False):
        assert report.distances == pytest.approx(list(expected), rel=1e-4)
        assert report.distance == pytest.approx(sum(expected) / len(expected), rel=1e-4)


@pytest.mark.fault("diverged")
def test_a_worker_that_diverged_has_no_distance(rank: int) -> None:
    model, reports = mlp(), []
    optimizer = wrap(model, on_round=reports.append)
    train(model, optimizer, range(3))
    if rank == 0:
        model[0].weight.data.fill_(torch.nan)
    train(model, optimizer, range(3, 8))
    assert [[math.isnan(distance) for distance in report.distances] for report in reports] == [
        [True, True],
        [False, False],
        [True, False],
        [False, False],
    ]
    assert not math.isnan(reports[2].distance)


def test_phases_are_named_ranges_in_a_profile() -> None:
    model = mlp()
    optimizer = wrap(model, period=2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, range(4))
    ranges = {event.key: event.count for event in profile.key_averages() if event.key.startswith("grawa.")}
    assert ranges.keys() == {f"grawa.{phase}" for phase in PHASES}
    assert ranges["grawa.communicate"] >= 2


def test_on_round_sees_the_models_after_the_pull_and_may_read_the_optimizer() -> None:
    model, found = mlp(), []

    def on_round(report: Any) -> None:
        found.append((optimizer.rounds, optimizer.last_round is report, copies(model)))

    optimizer = wrap(model, pull=1.0, on_round=on_round)
    train(model, optimizer, range(2))
    (rounds, is_last, seen), *more = found
    assert not more
    assert (rounds, is_last) == (1, True)
    assert all(torch.equal(x, c) for x, c in zip(seen, optimizer.center.values(), strict=True))


@pytest.mark.parametrize("on_round", [3, "print", []], ids=str)
def test_an_on_round_that_cannot_be_called_is_refused(on_round: Any) -> None:
    found = errors(lambda: wrap(mlp(), on_round=on_round))
    assert [kind for kind, _ in found] == ["ValueError"] * peers.size()
    assert all(f"on_round must be callable, but is {on_round!r}" in text for _, text in found)


@pytest.mark.horovod
@pytest.mark.skipif(os.environ.get("HOROVOD_TIMELINE") != "DYNAMIC", reason="Horovod asks for HOROVOD_TIMELINE=DYNAMIC")
def test_a_horovod_timeline_names_the_collectives_of_a_round(tmp_path: Any, rank: int) -> None:
    """Rank 0 writes it."""
    file = tmp_path / "timeline.json"
    hvd.start_timeline(str(file), mark_cycles=False)
    _, _, optimizer = told(steps=5, groups=2, overlap=1)
    hvd.stop_timeline()
    prefix = optimizer._worker._transport._prefix
    text = file.read_text() if file.exists() else ""
    assert rank or all(f"{prefix}.{name}" in text for name in ("rows", "bucket.0", "bucket.1"))
