"""Checkpoints are whole or not there, and are taken up by as many workers bitwise, by others from the mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from workers import Learner, errors, learn

import grawa_hvd
from grawa_hvd import checkpoint

OPTIONS: dict[str, Any] = {"averaging": "lgrawa", "period": 4, "outer_momentum": 0.5, "proximity": 0.01}


def go_on(learner: Learner, path: Path, steps: int, more: int) -> tuple[Tensor, Tensor]:
    """Parameters and centre after so many steps more, from a checkpoint."""
    assert checkpoint.load(path, learner.model, learner.optimizer) == {"epoch": 3, "rank": learner.rank}
    learner.steps = steps
    learner.step(more)
    return learner.flat(), learner.center()


def write(learner: Learner, path: Path, steps: int) -> Tensor:
    """Save after so many steps; the mean of the workers."""
    learner.step(steps)
    checkpoint.save(path, learner.model, learner.optimizer, epoch=3, rank=learner.rank)
    with learner.optimizer.consensus():
        return learner.flat()


@pytest.mark.parametrize("options", [OPTIONS, {**OPTIONS, "overlap": 2}], ids=["plain", "a round under way"])
@pytest.mark.parametrize("steps", [3, 5, 8])
def test_as_many_workers_go_on_bitwise(tmp_path: Path, steps: int, options: dict[str, Any]) -> None:
    path = tmp_path / "run.pt"

    def whole(learner: Learner) -> tuple[Tensor, Tensor]:
        write(learner, path, steps)
        learner.step(11)
        return learner.flat(), learner.center()

    expected = learn(2, whole, **options)
    taken_up = learn(2, lambda learner: go_on(learner, path, steps, 11), **options)
    for one, other in zip(expected, taken_up, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize(
    "changed",
    [{}, {"period": 3, "averaging": "uniform", "outer_momentum": 0.0}, {"compression": grawa_hvd.Compression.fp16}],
    ids=str,
)
def test_another_number_of_workers_starts_from_the_mean_and_the_centre(
    tmp_path: Path, before: int, after: int, changed: dict[str, Any]
) -> None:
    path = tmp_path / "run.pt"

    def first(learner: Learner) -> tuple[Tensor, Tensor]:
        return write(learner, path, 6), learner.center()

    (mean, center), *_ = learn(before, first, **OPTIONS)

    def second(learner: Learner) -> tuple[Tensor, Tensor, int]:
        assert checkpoint.load(path, learner.model, learner.optimizer) == {"epoch": 3, "rank": 0}
        start, there = learner.flat(), learner.center()
        rounds = learner.optimizer.rounds
        learner.step(12)
        assert learner.flat().isfinite().all()
        assert learner.optimizer.rounds > rounds or after == 1
        return start, there, rounds

    chosen = {**OPTIONS, **changed}
    for start, there, rounds in learn(after, second, **chosen):
        assert torch.equal(start, mean)
        assert torch.equal(there, center)
        assert rounds == 1


SAVES_AND_DIES = """
import os, signal, sys
import torch
from workers import learn
from grawa_hvd import checkpoint
path, moment = sys.argv[1], sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(value, file):
    file.write(b"PK" * 1000)
    file.flush()
    die()

def work(learner):
    learner.step(2)
    checkpoint.save(path, learner.model, learner.optimizer, number=1)
    learner.step(2)
    if moment == "in a part":
        torch.save = half
    elif moment == "after the parts":
        fsync, calls = os.fsync, []
        os.fsync = lambda fd: die() if calls else (calls.append(1), fsync(fd))
    else:
        checkpoint.Path.replace = die
    checkpoint.save(path, learner.model, learner.optimizer, number=2)

learn(1, work)
"""


@pytest.mark.parametrize("moment", ["in a part", "after the parts", "before the move"])
@pytest.mark.fault("torn")
def test_a_kill_while_writing_leaves_the_earlier_checkpoint_whole(tmp_path: Path, moment: str) -> None:
    path, tests = tmp_path / "run.pt", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parents[1]}"}
    command = [sys.executable, "-c", SAVES_AND_DIES, str(path), moment]
    assert subprocess.run(command, env=environment, timeout=120).returncode == -signal.SIGKILL

    def work(learner: Learner) -> None:
        assert len(list(tmp_path.iterdir())) > 2  # what was left half done
        assert checkpoint.load(path, learner.model, learner.optimizer) == {"number": 1}
        checkpoint.save(path, learner.model, learner.optimizer, number=3)
        assert len(list(tmp_path.iterdir())) == 2

    learn(1, work)


@pytest.mark.fault("checkpoint")
def test_where_one_worker_fails_all_raise_and_the_earlier_checkpoint_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"

    def work(learner: Learner) -> None:
        write(learner, path, 2)
        bad = {"value": object()} if learner.rank == 1 else {}
        checkpoint.save(path, learner.model, learner.optimizer, **bad)

    found = errors(2, work)
    assert [kind for kind, _ in found] == ["RuntimeError"] * 2
    assert all("a checkpoint takes tensors, numbers" in text for _, text in found)
    assert "on rank 1" in found[0][1]
    learn(2, lambda learner: go_on(learner, path, 2, 4))


@pytest.mark.fault("checkpoint")
def test_a_missing_part_is_told_to_all(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    learn(2, lambda learner: write(learner, path, 2))
    next(tmp_path.glob("*.worker1")).unlink()
    found = errors(2, lambda learner: checkpoint.load(path, learner.model, learner.optimizer))
    assert [kind for kind, _ in found] == ["FileNotFoundError"] * 2


@pytest.mark.fault("checkpoint")
def test_other_files_and_optimizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    torch.save({"model": {}}, path)
    found = errors(2, lambda learner: checkpoint.load(path, learner.model, learner.optimizer))
    assert [kind for kind, _ in found] == ["ValueError"] * 2
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="optimizer must be a DistributedGrawaOptimizer, but is a SGD"):
        checkpoint.save(path, model, torch.optim.SGD(model.parameters(), lr=0.1))
