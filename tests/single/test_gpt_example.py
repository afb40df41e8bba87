"""examples/gpt.py, as its user runs it, on a small text that the test makes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import ROOT, launch

sys.path.insert(0, str(ROOT / "examples"))
import gpt

SMALL = ["--width", "32", "--layers", "1", "--heads", "2", "--context", "16", "--evaluate-every", "20", "--lr", "0.01"]
DILOCO = ["--averaging", "uniform", "--pull", "1", "--outer-lr", "0.7", "--outer-momentum", "0.9", "--period", "10"]


def train(launcher: str, folder: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    text, file = folder / "text", folder / "figures.json"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 200)
    finished = launch(launcher, "examples/gpt.py", "--text", text, "--json", file, *SMALL, *arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    epochs: list[dict[str, Any]] = json.loads(file.read_text())["epochs"]
    return epochs


@pytest.mark.parametrize(("launcher", "how"), [("horovodrun", []), ("torchrun", ["--optimizer", "ddp"])])
def test_it_learns_a_text_that_repeats_itself(launcher: str, how: list[str], tmp_path: Path) -> None:
    epochs = train(launcher, tmp_path, "--steps", "60", "--period", "10", *how)
    assert [epoch["step"] for epoch in epochs] == [20, 40, 60]
    # From ln 256 at the start; the text has 28 different bytes, so who knows that alone is at ln 28.
    assert epochs[-1]["held-out loss"] < math.log(28) / 2
    assert epochs[-1]["communications"] == (60 if how else 6)


def test_diloco_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    train("torchrun", tmp_path, *DILOCO, "--steps", "40", "--checkpoints", folder)
    state = torch.load(folder / "rank0-step20.pt", weights_only=True)
    for rank in range(2):
        (folder / f"rank{rank}-step40.pt").unlink()
    whole = torch.load(folder / "model.pt", weights_only=True)
    epochs = train("torchrun", tmp_path, *DILOCO, "--steps", "40", "--checkpoints", folder, "--resume")
    resumed = torch.load(folder / "model.pt", weights_only=True)
    assert state["budget"]["steps"] == 20 and [epoch["step"] for epoch in epochs] == [20, 40]
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, resumed["model"][name]), name
    assert whole["loss"] == resumed["loss"]


def test_no_byte_sees_what_comes_after_it() -> None:
    torch.manual_seed(0)
    model = gpt.GPT(width=16, layers=2, heads=2, context=8).eval()
    text = torch.randint(256, (1, 8))
    other = text.clone()
    other[0, 5] += 1
    with torch.no_grad():
        same = (model(text) == model(other % 256)).all(dim=2)[0]
    assert same.tolist() == [True] * 5 + [False] * 3


def test_layers_start_apart() -> None:
    first, second = gpt.GPT(16, 2, 2, 8).layers.layers
    assert not torch.equal(first.self_attn.in_proj_weight, second.self_attn.in_proj_weight)
    assert first.norm1.weight.eq(1).all() and first.self_attn.in_proj_bias.eq(0).all()


def test_the_last_tenth_of_each_file_is_held_out(tmp_path: Path) -> None:
    class Ranks:
        rank, size = 1, 2

    files = [tmp_path / name for name in "ab"]
    for file, byte in zip(files, (b"a", b"b"), strict=True):
        file.write_bytes(byte * 90 + byte.upper() * 10)
    text = gpt.Text(files, 4, 3, Ranks(), torch.device("cpu"))
    assert {*torch.cat(list(text.training(0, 5))).unique().tolist()} == {ord("b")}  # the second rank's part
    assert torch.cat(list(text.test(9))).flatten().tolist() == [ord("B")] * 10
    with pytest.raises(ValueError, match=r"at least --context \+ 1 = 12 bytes, but one has 10"):
        gpt.Text(files, 11, 3, Ranks(), torch.device("cpu"))


def test_the_repository_has_a_text() -> None:
    files = gpt.own_text()
    assert {ROOT / "README.md", ROOT / "examples" / "gpt.py"} <= {*files}
    assert sum(file.stat().st_size for file in files) > 500_000
