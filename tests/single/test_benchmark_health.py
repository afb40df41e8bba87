"""benchmarks/health.py on a small model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("horovod", reason="the benchmarks describe the machine with Horovod's version")
ROOT = Path(__file__).resolve().parents[2]


def test_compares_cycles_with_checks_and_without(tmp_path: Path) -> None:
    """In a process of its own, in which one rank averages with itself."""
    file = tmp_path / "health.json"
    command = [sys.executable, "-m", "benchmarks.health", "--width", "16", "--cycles", "5", "--period", "3"]
    finished = subprocess.run(
        [*command, "--json", str(file)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["rows"]] == ["with checks / without", "with checks, again / with checks"]
    assert all(0 < row["lower_quartile"] <= row["median"] <= row["upper_quartile"] for row in found["rows"])
    assert found["parameters"] == 784 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
