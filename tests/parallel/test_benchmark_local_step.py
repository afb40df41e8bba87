"""The benchmark of a local step checks what it times, and writes what the documents quote."""

from __future__ import annotations

import json
from pathlib import Path

import peers
import pytest
import torch

pytest.importorskip("horovod", reason=peers.OF_HOROVOD)  # which the benchmark initialises

from benchmarks import local_step

pytestmark = [pytest.mark.horovod, pytest.mark.ranks(2)]


def test_measures_every_way_beside_the_bare_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "step.json"
    local_step.main(
        ["--models", "resnet20", "--seconds", "0.2", "--json", str(path), "--plot", str(tmp_path / "a.png")]
    )
    if peers.rank() > 0:
        assert not path.exists()
        return
    results = json.loads(path.read_text())
    assert [cell["optimizer"] for cell in results["cells"]] == ["SGD", "AdamW"]
    for cell in results["cells"]:
        assert cell["rows"][0]["over_bare"]["median"] == 1
        assert all(row["microseconds"]["median"] > 0 for row in cell["rows"])
        assert 0 <= cell["relative_error"] <= local_step.TOLERANCE
        assert "ours, proximity" in capsys.readouterr().out or cell["optimizer"] == "AdamW"
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_a_wrong_step_is_noticed() -> None:
    all_ways = local_step.ways("resnet20", "SGD", "cpu")
    with torch.no_grad():
        all_ways[2].parameters[0].mul_(1.01)
    bare, ours = all_ways[0], all_ways[2]
    assert local_step._deviation(ours, bare) > local_step.TOLERANCE
