"""The benchmark of a round over torch.distributed, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("horovod", reason="the benchmarks describe the machine with Horovod's version")

from benchmarks.round_methods import METHODS

ROOT = Path(__file__).parents[2]


def test_measures_every_method_over_torch(tmp_path: Path) -> None:
    figures = tmp_path / "run.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "benchmarks.round", "--transport", "torch", "--models", "resnet20", "--seconds", "0.1"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *command, "--json", figures], cwd=ROOT, env=variables, check=True, timeout=150)
    (cell,) = json.loads(figures.read_text())["runs"][0]["cells"]
    assert (cell["transport"], cell["ranks"]) == ("torch", 2)
    names = {row["name"] for row in cell["rows"]}
    assert {method.name for method in METHODS["torch"]} < names
    assert all(row["over_torch_averager"]["median"] > 0 for row in cell["rows"])
