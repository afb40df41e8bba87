"""The demo, as its user runs it: under horovodrun, on a small file of images that the test makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8 × 8 images, told apart by which rows are bright."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    images = rng.random((200, 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 3] += 2
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=images, labels=labels)
    return path


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "horovodrun"), "-np", "2", "-H", "localhost:2", sys.executable, "examples/digits.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        [*command, *arguments, "--plot", str(folder / "demo.png")],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip


def test_trains_with_both_optimizers_and_writes_table_plot_and_figures(images: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--data", str(images), "--epochs", "16", "--lr", "0.05", "--period", "4", "--repeats", "2"]
    finished = demo(tmp_path, *arguments, "--averaging", "lgrawa", "uniform", "--json", str(figures))
    assert finished.returncode == 0, finished.stderr
    runs = json.loads(figures.read_text())["runs"]
    assert [(run["name"], run["seed"]) for run in runs] == [
        (name, seed) for seed in (0, 1) for name in ("hvd.DistributedOptimizer", "lgrawa", "uniform")
    ]
    steps = 16 * 3  # 80 images a worker in batches of 32
    for run in runs:
        assert run["communications"] == (steps if run["name"].startswith("hvd") else steps // 4)
        assert run["accuracy"] > 0.9
        assert f"{run['name']}" in finished.stdout
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_bad_options_are_refused_by_name(tmp_path: Path) -> None:
    finished = demo(tmp_path, "--averaging", "median", "--epochs", "1")
    assert finished.returncode != 0
    assert "averaging must be one of" in finished.stdout + finished.stderr
