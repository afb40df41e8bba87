"""What the training scripts share: how long a run takes, its learning rate, what it prints, and its checkpoints."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

if TYPE_CHECKING:
    from peers import Peers

# Ranks compare their clocks every so many steps of a run that is limited by time.
STEPS_BETWEEN_CLOCKS = 20
KEPT_CHECKPOINTS = 2


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every script takes."""
    add = parser.add_argument_group("the run").add_argument
    add("--minutes", type=float, help="train for so long instead, evaluation not counted")
    add("--seed", type=int, default=0, help="of weights, data and their order (default: %(default)s)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="workers share the GPUs of a host in turn")
    add("--transport", choices=("horovod", "torch"), help="what carries models and gradients (default: the launcher's)")
    add("--checkpoints", type=Path, metavar="FOLDER", help="write model.pt, the trained model, and each rank's state")
    add("--resume", action="store_true", help="go on from the newest checkpoint in that folder that all ranks have")
    add("--tensorboard", type=Path, metavar="FOLDER", help="write losses, and what rounds did, for TensorBoard")
    add("--json", type=Path, metavar="FILE", help="write the figures of each epoch there")


def device_of(options: argparse.Namespace, peers: Peers) -> torch.device:
    """The device of this rank, made the current one."""
    if options.device == "cuda":
        torch.cuda.set_device(peers.local_rank % torch.cuda.device_count())
    return torch.device(options.device)


def seed_of(*numbers: int) -> int:
    """One seed of several numbers, such as seed, rank and epoch: different for different ones."""
    seed = 0
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return seed


class Budget:
    """How much of a run is done, the same on every rank: by steps, or by time.

    Attributes:
        steps: taken.
        seconds: spent in training.
        fraction: what is done of the run, 0 to 1.

    Args:
        steps: how many the run has.
        minutes: how long it takes instead; None: it goes by steps.
        peers: the ranks, whose clocks count by their mean.
    """

    def __init__(self, steps: int, minutes: float | None, peers: Peers) -> None:
        self._total, self._minutes, self._peers = steps, minutes, peers
        self.steps, self.seconds, self.fraction = 0, 0.0, 0.0
        self._since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Let time count inside."""
        self._since = time.perf_counter()
        yield
        if torch.cuda.is_initialized():  # which lags behind the host
            torch.cuda.synchronize()
        self._note_time()

    def take_step(self) -> bool:
        """Count a step; whether it was the last of the run."""
        self.steps += 1
        if self._minutes is None:
            self.fraction = min(1.0, self.steps / self._total)
        elif self.steps % STEPS_BETWEEN_CLOCKS == 0:
            self._note_time()
            self.fraction = min(1.0, self._peers.mean([self.seconds])[0] / (60 * self._minutes))
        return self.is_over

    @property
    def is_over(self) -> bool:
        return self.fraction >= 1

    def _note_time(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": self.steps, "seconds": self.seconds}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned; the run may have become longer."""
        self.steps, self.seconds = state["steps"], state["seconds"]
        done = self.steps / self._total
        if self._minutes is not None:
            done = self._peers.mean([self.seconds])[0] / (60 * self._minutes)
        self.fraction = min(1.0, done)


def stepped(fraction: float, drops: Iterable[float], factor: float) -> float:
    """Learning rate, of the first: times `factor` at each of these fractions of the run."""
    return factor ** sum(fraction >= drop for drop in drops)


def cosine(fraction: float, warmup: float = 0.0, last: float = 0.0) -> float:
    """Learning rate, of the largest: up in a line for the fraction `warmup` of the run, then by a cosine to `last`."""
    if fraction < warmup:
        return fraction / warmup
    return last + (1 - last) * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup))) / 2


class Log:
    """What rank 0 tells of the run: a bar a step, a line an epoch, TensorBoard and JSON if asked for."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        self._is_first, self._json, self.writer = rank == 0, options.json, None
        self.epochs: list[dict[str, Any]] = []
        if self._is_first and options.tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (where it is asked for)

            self.writer = SummaryWriter(str(options.tensorboard))

    def bar(self, batches: Iterable[Any], steps: int, epoch: int) -> Iterable[Any]:
        """The batches, with a bar that shows how far they are."""
        return tqdm(batches, f"epoch {epoch}", steps, leave=False, mininterval=2, disable=not self._is_first)

    def note(self, step: int, figures: dict[str, float]) -> None:
        """Figures of an epoch by name; the same on every rank, or of rank 0."""
        self.epochs.append({"step": step, **figures})
        if not self._is_first:
            return
        print(f"step {step}: " + ", ".join(f"{name} {value:.5g}" for name, value in figures.items()), flush=True)
        if self.writer is not None:
            for name, value in figures.items():
                self.writer.add_scalar(f"training/{name}", value, step)

    def close(self, **more: Any) -> None:
        """Write what is left to write."""
        if self.writer is not None:
            self.writer.close()
        if self._is_first and self._json is not None:
            self._json.write_text(json.dumps({**more, "epochs": self.epochs}, indent=1, default=str) + "\n")


class Checkpoints:
    """A folder with `model.pt`, what training has come to, and each rank's own states, by step.

    Each rank keeps its newest two. A run that ends while they are written leaves every rank one of the same step, as
    ranks are at most one apart. Hosts may have folders of their own.
    """

    def __init__(self, folder: Path | None, peers: Peers) -> None:
        self._folder, self._peers = folder, peers
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def save_model(self, state: dict[str, Any]) -> None:
        """What rank 0 writes within `evaluation()`."""
        if self._folder is not None and self._peers.rank == 0:
            _write(state, self._folder / "model.pt")

    def save(self, step: int, state: dict[str, Any]) -> None:
        """This rank's own state."""
        if self._folder is None:
            return
        _write({**state, "ranks": self._peers.size}, self._file(step))
        for old in self._steps()[:-KEPT_CHECKPOINTS]:
            self._file(old).unlink()

    def load(self) -> dict[str, Any]:
        """This rank's state of the newest step that all ranks have.

        Raises:
            ValueError: on every rank, if there is none, or the run had another number of ranks.
        """
        newest = self._peers.minimum(max(self._steps(), default=-1) if self._folder is not None else -1)
        if newest < 0:
            raise ValueError(f"--resume needs --checkpoints with states of all {self._peers.size} ranks")
        state: dict[str, Any] = torch.load(self._file(newest), map_location="cpu", weights_only=True)
        if state["ranks"] != self._peers.size:
            raise ValueError(f"--resume needs {state['ranks']} ranks, as in the run so far, but there are "
                             f"{self._peers.size}")  # fmt: skip
        return state

    def _file(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"rank{self._peers.rank}-step{step}.pt"

    def _steps(self) -> list[int]:
        assert self._folder is not None
        found = self._folder.glob(f"rank{self._peers.rank}-step*.pt")
        return sorted(int(path.stem.rpartition("step")[2]) for path in found)


def _write(state: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    staged = path.with_suffix(".new")
    torch.save(state, staged)
    os.replace(staged, path)


def mean_loss(losses: list[Tensor], peers: Peers) -> float:
    """The mean over the steps of an epoch and over the ranks; the one wait for a device."""
    return peers.mean([torch.stack(losses).mean().item()])[0]
