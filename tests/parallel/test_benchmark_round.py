"""The benchmark of a round: every method is checked, a wrong one refused on all ranks, the figures complete."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peers
import pytest
import torch
from torch import Tensor

pytest.importorskip("horovod", reason=peers.OF_HOROVOD)  # which is one of the methods

from benchmarks import ranks, round_report
from benchmarks import round as bench
from benchmarks.models import resnet20
from benchmarks.round_methods import METHODS, LgrawaRound, Method, Workload

pytestmark = pytest.mark.horovod

RANK_0_OF_2 = SimpleNamespace(rank=0, size=2)
TINY = [(3, 5), (1,), (70,), (2, 2)]


@pytest.fixture
def work(rank: int, size: int) -> Iterator[Workload]:
    with ranks.torch_group():
        yield Workload("tiny", TINY)


@pytest.mark.ranks(2)
def test_measures_every_method_and_writes_figures_and_picture(
    rank: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, joined, picture = (tmp_path / name for name in ("run.json", "all.json", "all.png"))
    bench.main(["--models", "resnet20", "--seconds", "0.1", "--json", str(figures)])
    if rank > 0:
        assert not figures.exists()
        return
    run = json.loads(figures.read_text())["runs"][0]
    assert run["versions"]["torch"] == torch.__version__
    assert {"horovod", "grawa_hvd"} <= run["versions"].keys()
    assert str(tmp_path) not in figures.read_text() and socket.gethostname() not in figures.read_text()
    (cell,) = run["cells"]
    assert (cell["model"], cell["ranks"], cell["model_bytes"]) == ("resnet20", 2, 4 * 272_474)
    assert cell["passes"] >= bench.FEWEST_PASSES
    table = capsys.readouterr().out
    assert [row["role"] for row in cell["rows"]] == ["limit", "ours", "ours", "ours", "peer", "peer", "peer"]
    for row in cell["rows"]:
        times = row["seconds"]
        assert 0 < times["lower_quartile"] <= times["median"] <= times["upper_quartile"]
        assert row["bytes"] >= cell["model_bytes"]
        assert row["name"] in table
    assert set(cell["rows"][0]["over_bare_allreduce"].values()) == {1}

    round_report.main([str(figures), "--json", str(joined), "--plot", str(picture)])
    assert json.loads(joined.read_text()) == {"runs": [run]}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("resnet20, 2 ranks") == len(round_report.GOALS) - 1  # one is torch's


@pytest.mark.ranks(min=2)
def test_every_method_passes_its_check_layer_by_layer(work: Workload, size: int) -> None:
    errors = bench.check([method(work) for method in METHODS["horovod"]], work)
    assert len(errors) == len(METHODS["horovod"])
    assert max(errors.values()) <= bench.tolerance(size)


@pytest.mark.ranks(min=2)
@pytest.mark.parametrize("method", METHODS["horovod"])
def test_a_result_wrong_on_one_rank_is_refused_on_all(
    work: Workload, method: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = method.results

    def wrong(self: Method) -> list[Tensor]:
        *others, last = right(self)
        return [*others, last * 1.0001]

    if work.rank == work.size - 1:
        monkeypatch.setattr(method, "results", wrong)
    with pytest.raises(bench.WrongResultError, match=method.name):
        bench.check([kind(work) for kind in METHODS["horovod"]], work)


@pytest.mark.ranks(min=2)
def test_a_plain_mean_does_not_pass_for_the_weighted_one(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LgrawaRound, "averaging", "uniform")
    with pytest.raises(bench.WrongResultError, match=LgrawaRound.name):
        bench.check([LgrawaRound(work)], work)


@pytest.mark.ranks(min=2)
def test_the_limit_can_be_called_any_number_of_times(work: Workload) -> None:
    limit = METHODS["horovod"][0](work)
    bench.check([limit], work)
    for _ in range(130):  # 2¹²⁸ is beyond float32
        limit.call()
    assert all(result.isfinite().all() for result in limit.results())


def test_noise_differs_from_layer_to_layer() -> None:
    noise = Workload("resnet20", resnet20(), RANK_0_OF_2).noise
    assert [tuple(layer.shape) for layer in noise] == resnet20()
    assert len({float(layer.flatten()[0]) for layer in noise}) == len(noise)


def _cell(model: str, parameters: int, ranks: int, over_limit: float) -> dict[str, Any]:
    keys = (round_report.OVER_LIMIT, round_report.OVER_UNIFORM, round_report.AUTHORS_OVER, round_report.OVER_AVERAGER)
    values = zip(keys, (over_limit, 1.0, 9.0, 0.6), strict=True)
    ratios = {key: dict.fromkeys(("lower_quartile", "median", "upper_quartile"), value) for key, value in values}
    rows = [{"name": name, **ratios} for name in (LgrawaRound.name, LgrawaRound.with_norms)]
    return {"model": model, "parameters": parameters, "ranks": ranks, "transport": "torch", "rows": rows}


def test_a_missed_goal_is_told() -> None:
    cells = [_cell("resnet20", 272_474, 2, 1.4), _cell("wrn28_10", 36_479_194, 2, 1.6), _cell("huge", 25_000_000, 4, 9)]
    lines = list(round_report.verdicts([*cells, _cell("tiny500", 25_250, 2, 9)]))
    assert len(lines) == 4 + 4 + 3
    assert [line.split()[-1] for line in lines[:2]] == ["met", "MISSED"]
    assert all(line.endswith("met") for line in lines[2:])
