"""The benchmark over several hosts, here on one: its rows are complete, its bytes counted, a wrong model refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from torch import Tensor

pytest.importorskip("horovod", reason=peers.OF_HOROVOD)  # which is one of the methods

from benchmarks import cluster_digits, cluster_plot, cluster_report, cluster_worker, ranks
from benchmarks import round as bench_round
from benchmarks.cluster_methods import ALONE, HOROVOD, NAMES, Trainee, trainees
from benchmarks.cluster_wire import Wire, over_hosts
from benchmarks.cost_model_fit import samples
from examples.digits import Data

pytestmark = pytest.mark.horovod

WIDTH = 200
TAU_16 = "LGRAWA τ = 16"


@pytest.fixture
def group(rank: int) -> Iterator[None]:
    with ranks.torch_group():
        yield


@pytest.fixture
def data(rank: int) -> Data:
    """Two classes of 8 × 8 images, one bright above and one below: every rank's share is the same but for noise."""
    noise = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(rank))
    labels = torch.arange(64) % 2
    noise[labels == 0, :, :4] += 2
    noise[labels == 1, :, 4:] += 2
    return Data(noise, labels, noise, labels, 2)


@pytest.mark.ranks(2)
def test_measures_every_method_and_writes_figures_table_and_picture(rank: int, tmp_path: Path) -> None:
    figures, picture = tmp_path / "cell.json", tmp_path / "cell.png"
    sizes = ["--width", str(WIDTH), "--round-layers", "1", "--seconds", "0"]
    cluster_worker.main(["--interface", "lo", *sizes, "--json", str(figures)])
    if rank > 0:
        return
    text = figures.read_text()
    assert str(tmp_path) not in text and socket.gethostname() not in text
    cell = json.loads(text)
    assert [row["name"] for row in cell["rows"]] == NAMES
    assert (cell["ranks"], cell["hosts"], cell["parameters"]) == (2, 1, 75 * WIDTH + 10)
    assert cell["passes"] == cluster_worker.FEWEST_PASSES
    rows = {row["name"]: row for row in cell["rows"]}
    assert set(rows[HOROVOD][cluster_report.OVER_HOROVOD].values()) == {1}
    # What two ranks send in an all-reduce of a model is the model, from each of them.
    assert rows[HOROVOD]["bytes_per_step"]["median"] > 2 * 4 * cell["parameters"]
    assert rows[ALONE]["bytes_per_step"]["median"] < rows[HOROVOD]["bytes_per_step"]["median"]
    table = cluster_report.table(cell)
    assert all(name in table for name in NAMES)
    assert all("unshaped" in line for line in cluster_report.verdicts([cell]))
    cluster_plot.plot([cell, {**cell, "rate": "1gbit"}], picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    # All methods but the one that does not communicate, a bare allreduce and a round, the probes.
    assert len(list(samples({"cells": [cell]}))) == len(NAMES) - 1 + 2 + len(cell["allreduce"])


@pytest.mark.ranks(min=2)
def test_a_model_that_differs_on_one_rank_is_refused_on_all(
    group: None, data: Data, rank: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = trainees([HOROVOD, TAU_16], data, WIDTH)
    for method in methods:
        method.block()
    cluster_worker.check(methods)
    right = methods[1].shared()

    def wrong() -> list[Tensor]:
        return [*right[:-1], right[-1] + 1e-6]

    if rank == size - 1:
        monkeypatch.setattr(methods[1], "shared", wrong)
    with pytest.raises(bench_round.WrongResultError, match=f"{TAU_16}: "):
        cluster_worker.check(methods)


@pytest.mark.ranks(min=2)
def test_training_that_has_diverged_is_refused(
    group: None, data: Data, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = trainees([HOROVOD], data, WIDTH)
    methods[0].block()
    if rank == 0:
        monkeypatch.setattr(Trainee, "loss", lambda _: float("nan"))
    with pytest.raises(bench_round.WrongResultError, match=HOROVOD):
        cluster_worker.check(methods)


@pytest.mark.ranks(min=2)
def test_an_overlapped_round_begins_and_ends_within_a_block(group: None, data: Data) -> None:
    (method,) = trainees([f"{TAU_16}, overlap 8"], data, WIDTH)
    cluster_worker.warm_up([method])
    for rounds in (2, 3):
        method.block()
        assert method._optimizer.rounds == rounds  # type: ignore[attr-defined]


@pytest.mark.ranks(min=2)
@pytest.mark.parametrize("target", [0.9, 1.1])
def test_the_time_to_an_accuracy_is_told_where_it_is_reached_and_only_there(
    group: None, data: Data, monkeypatch: pytest.MonkeyPatch, target: float
) -> None:
    monkeypatch.setattr(cluster_digits, "TARGET", target)
    monkeypatch.setattr(cluster_digits, "MOST_STEPS", 32)
    monkeypatch.setattr(cluster_digits, "METHODS", ((0, 0.0), (16, 0.7)))
    rows = cluster_digits.races(data, 1, False)
    assert [row["name"] for row in rows] == [cluster_digits.name_of(*method) for method in cluster_digits.METHODS]
    for row in rows:
        assert row["reached"] == (1 if target < 1 else 0)
        assert (row["steps"] in (16, 32) and row["seconds"] > 0) if target < 1 else row["steps"] is None


@pytest.mark.ranks(min=2)
def test_a_host_counts_once_however_many_ranks_it_has(group: None, size: int) -> None:
    wire = Wire("lo")
    wire.start()
    torch.distributed.all_reduce(torch.zeros(1 << 18))
    whole = over_hosts([wire.sent()])[0]
    # A ring all-reduce sends 2 (n − 1) times a tensor of 1 MiB in all, and headers.
    assert 2 * (size - 1) <= whole / (1 << 20) < 2 * (size - 1) + 1.5


def _cell(rate: str, faster: float, sent: float, over_limit: float) -> dict[str, Any]:
    def same(value: float) -> dict[str, float]:
        return dict.fromkeys(("lower_quartile", "median", "upper_quartile"), value)

    method = {"kind": "models", "period": 16, "local_period": 0, "half": False, "overlap": 0}
    row = {"name": TAU_16, "method": method, "images_over_horovod": same(faster), "own_bytes_over_horovod": same(sent)}
    timed = {"parameters": 10_000_000, "rows": [{"name": "grawa_hvd LGRAWA", "over_bare_allreduce": same(over_limit)}]}
    return {"rate": rate, "rows": [row], "round": timed}


def test_a_missed_goal_is_told() -> None:
    def last_words(*cell: Any) -> list[str]:
        return [line.split()[-1] for line in cluster_report.verdicts([_cell(*cell)])]

    assert last_words("1gbit", 5.1, 1.01 / 16, 1.04) == ["met", "met", "met"]
    assert last_words("1gbit", 4.9, 1.03 / 16, 1.06) == ["MISSED", "MISSED", "MISSED"]
    assert last_words("none", 1.1, 1.01 / 16, 1.2) == ["met", "met"]
    assert last_words("100mbit", 0.9, 1.01 / 16, 1.2) == ["MISSED", "met"]
