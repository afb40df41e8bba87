"""The example, as its user runs it, with fewer steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def example(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "examples/simulation.py"), "--plot", str(folder / "plot.png"), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def test_256_workers_are_compared_in_a_table_and_a_picture(tmp_path: Path) -> None:
    arguments = ["--steps", "16", "--period", "8", "--seeds", "2", "--noisy", "0.5"]
    finished = example(tmp_path, *arguments, "--averaging", "uniform", "lgrawa", "--json", str(tmp_path / "runs.json"))
    assert finished.returncode == 0, finished.stderr
    rows = [line.split() for line in finished.stdout.splitlines() if line.startswith(("uniform", "lgrawa"))]
    # Name, accuracy ± deviation, difference ± interval, seconds.
    assert [(row[0], len(row)) for row in rows] == [("uniform", 5), ("lgrawa", 8)]
    assert all(10 < float(row[1]) < 100 for row in rows)
    assert abs(float(rows[1][1]) - float(rows[0][1]) - float(rows[1][4])) <= 0.11  # three roundings to a tenth
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert [(run["averaging"], run["seed"]) for run in runs] == [
        (name, seed) for seed in (0, 1) for name in ("uniform", "lgrawa")
    ]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_bad_options_are_refused_by_name(tmp_path: Path) -> None:
    finished = example(tmp_path, "--averaging", "median", "--workers", "4", "--steps", "1")
    assert finished.returncode != 0
    assert "averaging must be one of" in finished.stderr
