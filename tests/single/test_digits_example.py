"""The demo, as its user runs it: under horovodrun and torchrun, on a small file of images that the test makes."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from launch import launch

from examples import optimizers, peers
from grawa_hvd.averaging import POLICIES, Uniform


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


@pytest.fixture(scope="module")
def no_horovod(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a package `horovod` that cannot be imported."""
    folder = tmp_path_factory.mktemp("no_horovod")
    (folder / "horovod").mkdir()
    (folder / "horovod" / "__init__.py").write_text("raise RuntimeError('this run must not import Horovod')\n")
    return folder


def demo(launcher: str, folder: Path, *arguments: str, paths: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    return launch(launcher, "examples/digits.py", *arguments, "--plot", folder / "demo.png", paths=paths)


@pytest.mark.parametrize(
    ("launcher", "transport", "baseline"),
    [("horovodrun", "horovod", "hvd.DistributedOptimizer"), ("torchrun", "torch", "DistributedDataParallel")],
)
def test_trains_with_both_optimizers_and_writes_table_plot_and_figures(
    launcher: str, transport: str, baseline: str, images: Path, no_horovod: Path, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--data", str(images), "--epochs", "16", "--lr", "0.05", "--period", "4", "--repeats", "2"]
    arguments += ["--averaging", "lgrawa", "uniform", "--json", str(file)]
    finished = demo(launcher, tmp_path, *arguments, paths=[no_horovod] if transport == "torch" else [])
    assert finished.returncode == 0, finished.stderr
    sentence = rf"With \d+\.\d% of the bytes that {re.escape(baseline)} sends for .*lgrawa reaches"
    assert re.search(sentence, finished.stdout)
    figures = json.loads(file.read_text())
    assert [figures[key] for key in ("transport", "launcher", "baseline", "workers")] == [
        transport, launcher, baseline, 2,
    ]  # fmt: skip
    assert figures["command"].startswith(f"{launcher} ")
    assert (figures["versions"]["horovod"] is None) == (transport == "torch")
    runs = figures["runs"]
    assert [(run["name"], run["seed"]) for run in runs] == [
        (name, seed) for seed in (0, 1) for name in (baseline, "lgrawa", "uniform")
    ]
    steps = 16 * 3  # 80 images a worker in batches of 32
    parameters = (16 * 9 + 16) + (32 * 16 * 9 + 32) + (64 * 32 * 16 + 64) + (3 * 64 + 3)
    for run in runs:
        assert run["communications"] == (steps if run["name"] == baseline else steps // 4)
        assert run["accuracy"] > 0.9
        assert 0 < run["communicating"] < run["seconds"]
        assert run["name"] in finished.stdout
        if run["name"] == baseline:
            assert run["bytes"] == steps * 4 * parameters
            # Gradients are averaged in every step: all workers have the same model.
            assert run["own_accuracy"] == pytest.approx(run["accuracy"], abs=1e-6)
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_bad_options_are_refused_by_name(tmp_path: Path) -> None:
    finished = demo("horovodrun", tmp_path, "--averaging", "median", "--epochs", "1")
    assert finished.returncode != 0
    assert "averaging must be one of" in finished.stdout + finished.stderr


def test_all_stands_for_every_policy_that_its_name_makes(images: Path, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ["--data", str(images), "--epochs", "1", "--period", "1", "--averaging", "all", "--json", str(file)]
    finished = demo("torchrun", tmp_path, *arguments)
    assert finished.returncode == 0, finished.stderr
    names, refused = optimizers.named_policies()
    assert {*names, *refused} == set(POLICIES)
    assert [run["name"] for run in json.loads(file.read_text())["runs"]] == ["DistributedDataParallel", *names]
    assert (tmp_path / "demo.png").exists()
    # They report their losses.
    assert "has a score of none" not in finished.stderr


def test_a_policy_that_needs_arguments_is_left_out_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Weighted(Uniform):
        by: str = field(kw_only=True)

    monkeypatch.setitem(POLICIES, "weighted", Weighted)
    names, refused = optimizers.named_policies()
    assert names[0] == "uniform" and "lgrawa" in names and "weighted" not in names
    assert "'by'" in refused["weighted"]


@pytest.mark.parametrize(
    ("named", "environment", "transport"),
    [
        (None, {"HOROVOD_RANK": "0"}, "horovod"),
        (None, {"HOROVOD_RANK": "0", "WORLD_SIZE": "8"}, "horovod"),
        (None, {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, "torch"),
        (None, {"WORLD_SIZE": "2"}, "torch"),
        (None, {}, "horovod"),
        ("torch", {}, "torch"),
        ("horovod", {"WORLD_SIZE": "8"}, "horovod"),
        ("horovod", {"HOROVOD_RANK": "0"}, "horovod"),
        ("torch", {"TORCHELASTIC_RUN_ID": "x"}, "torch"),
    ],
)
def test_the_launcher_or_the_user_says_the_transport(
    named: str | None, environment: dict[str, str], transport: str
) -> None:
    assert peers.chosen_transport(named, environment) == transport


@pytest.mark.parametrize(
    ("named", "environment", "message"),
    [
        ("horovod", {"TORCHELASTIC_RUN_ID": "x"}, "needs horovodrun, but torchrun started"),
        ("torch", {"HOROVOD_RANK": "0"}, "needs torchrun, but horovodrun started"),
    ],
)
def test_a_transport_that_the_launcher_does_not_serve_is_refused(
    named: str, environment: dict[str, str], message: str
) -> None:
    # Each process would train alone otherwise, and say so nowhere.
    with pytest.raises(ValueError, match=message):
        peers.chosen_transport(named, environment)
