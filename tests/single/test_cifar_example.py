"""examples/cifar.py, as its user runs it, on small files in the formats of CIFAR and ImageNet that the test makes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import ROOT, launch
from PIL import Image

sys.path.insert(0, str(ROOT / "examples"))
import cifar

FAST = ["--batch-size", "16", "--lr", "0.05", "--period", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training images and 21 test images of ten classes, told apart by which rows are bright, as of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar-10-batches-bin")
    rng = np.random.default_rng(0)
    for name, count in (("data_batch_1.bin", 40), ("data_batch_2.bin", 24), ("test_batch.bin", 21)):
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        images = rng.integers(0, 60, (count, 3, 32, 32), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * label : 3 * label + 4] += 150
        np.concatenate([labels[:, None], images.reshape(count, -1)], axis=1).tofile(folder / name)
    return folder


def train(launcher: str, data: Path, file: Path, *arguments: str | Path) -> dict[str, Any]:
    finished = launch(launcher, "examples/cifar.py", "--data", data, "--json", file, *FAST, *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    figures: dict[str, Any] = json.loads(file.read_text())
    return figures


@pytest.mark.parametrize("launcher", ["horovodrun", "torchrun"])
def test_a_run_that_is_resumed_ends_as_one_that_is_not(launcher: str, data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # The rate is the same at each step, however long the run is.
    same = ["--schedule", "constant", "--checkpoints"]
    at_once = train(launcher, data, tmp_path / "1.json", *same, whole, "--epochs", "2", "--tensorboard", tmp_path)
    train(launcher, data, tmp_path / "2.json", *same, parts, "--epochs", "1")
    resumed = train(launcher, data, tmp_path / "3.json", *same, parts, "--epochs", "2", "--resume")

    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (whole, parts))
    assert first["epoch"] == second["epoch"] == 2 and first["accuracy"] == second["accuracy"]
    assert first["model"].keys() == second["model"].keys()
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name
    for one, two in zip(at_once["epochs"], resumed["epochs"], strict=True):
        assert {**one, "seconds": 0, "communicating": 0} == {**two, "seconds": 0, "communicating": 0}
    assert [epoch["step"] for epoch in resumed["epochs"]] == [2, 4]
    assert [epoch["communications"] for epoch in resumed["epochs"]] == [1, 2]
    # What rank 0 saved is the mean of the workers: of the last checkpoints' own models, which have parted no further.
    owns = [torch.load(whole / f"rank{rank}-step4.pt", weights_only=True)["workers"]["model"] for rank in range(2)]
    assert not torch.equal(owns[0]["output.weight"], owns[1]["output.weight"])
    mean = (owns[0]["output.weight"] + owns[1]["output.weight"]) / 2
    torch.testing.assert_close(first["model"]["output.weight"], mean, rtol=2**-22, atol=2**-24)
    assert any(path.name.startswith("events.out") for path in tmp_path.iterdir())


def test_both_ways_to_share_gradients_come_to_the_same_losses(data: Path, tmp_path: Path) -> None:
    horovod, ddp = (
        train(launcher, data, tmp_path / f"{how}.json", "--optimizer", how, "--epochs", "2")["epochs"]
        for launcher, how in (("horovodrun", "hvd"), ("torchrun", "ddp"))
    )
    # Four steps in float32: sums in another order, and a drop of the rate on the way.
    assert [epoch["loss"] for epoch in horovod] == pytest.approx([epoch["loss"] for epoch in ddp], rel=1e-4)
    assert [epoch["communications"] for epoch in ddp] == [2, 4]


def test_what_the_launcher_does_not_serve_is_refused(data: Path) -> None:
    finished = launch("torchrun", "examples/cifar.py", "--data", data, *FAST, "--optimizer", "hvd")
    assert finished.returncode != 0
    assert "--optimizer hvd does not run over torch.distributed: take ddp" in finished.stdout + finished.stderr


def test_resnet50_reads_folders_of_jpeg_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.jpeg")
    figures = train(
        "torchrun", tmp_path, tmp_path / "figures.json", "--model", "resnet50", "--crop", "32", "--batch-size", "2",
        "--loaders", "1", "--epochs", "1", "--scores", "fresh",
    )  # fmt: skip
    [epoch] = figures["epochs"]
    assert epoch["step"] == 2 and epoch["communications"] == 1
    assert epoch["accuracy"] in (0, 0.25, 0.5, 0.75, 1)


# Of each, the parameters with ten classes, and the smallest image that it is to take: vgg16 halves five times.
@pytest.mark.parametrize(
    ("model", "millions", "smallest"),
    [
        ("resnet20", 0.27, 28), ("vgg16", 14.7, 32), ("pyramidnet110", 1.8, 28), ("densenet121", 7.0, 28),
        ("wrn28_10", 36.5, 28),
    ],
)  # fmt: skip
def test_the_networks_are_those_of_the_papers_and_take_small_images(model: str, millions: float, smallest: int) -> None:
    network = cifar.network(model, 10).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)
    with torch.no_grad():
        for side in (smallest, 32):
            assert network(torch.zeros(1, 3, side, side)).shape == (1, 10)


@pytest.mark.parametrize("script", ["cifar.py", "gpt.py", "digits.py"])
def test_every_script_says_how_it_is_called(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = __import__(script.removesuffix(".py"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="0"):
        patch.setattr(sys, "argv", [script, "--help"])
        module.parse()
    assert "torchrun --nproc-per-node 4 examples/" + script in capsys.readouterr().out
