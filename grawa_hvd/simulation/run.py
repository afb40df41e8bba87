"""A simulation under way: step after step of all workers."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from grawa_hvd.settings import Settings
from grawa_hvd.simulation.cohort import Cohort
from grawa_hvd.simulation.data import Pair, Shards
from grawa_hvd.simulation.gradients import Found, Gradients
from grawa_hvd.simulation.population import Population
from grawa_hvd.simulation.result import Simulation

Evaluate = Callable[[nn.Module], Any]


class Evaluation:
    """What is measured of the mean of the workers, now and then.

    Args:
        model: of which a copy becomes the mean.
        evaluate: given that copy in `eval()` mode, returns what is kept; None for nothing.
        every: steps between two evaluations.

    Attributes:
        found: (step, what was returned) pairs.
    """

    def __init__(self, model: nn.Module, evaluate: Evaluate | None, every: int) -> None:
        self._evaluate, self._every = evaluate, every
        self._model = None if evaluate is None else copy.deepcopy(model).eval()
        self.found: list[tuple[int, Any]] = []

    def after_step(self, step: int, is_last: bool, population: Population) -> None:
        """Evaluate, if that is due."""
        if self._evaluate is None or self._model is None or not (is_last or step % self._every == 0):
            return
        self._model.load_state_dict(population.mean())
        with torch.no_grad():
            self.found.append((step, self._evaluate(self._model)))


class Run:
    """M workers that train and average.

    Args:
        population: the workers.
        gradients: of them all.
        shards: their batches.
        settings: how they average.
        held_out: a batch for the scores, the same for all; None for one of each worker's own.
    """

    def __init__(
        self, population: Population, gradients: Gradients, shards: Shards, settings: Settings, held_out: Pair | None
    ) -> None:
        self._population, self._gradients, self._shards, self._held_out = population, gradients, shards, held_out
        # A worker that is alone averages with nobody.
        self._cohort = Cohort(population, settings) if population.size > 1 else None

    @torch.no_grad()
    def __call__(self, steps: int, evaluation: Evaluation, progress: bool) -> Simulation:
        """So many steps of all workers."""
        begin, losses = time.perf_counter(), []
        for step in _with_progress(range(1, steps + 1), progress):
            losses.append(self._step())
            evaluation.after_step(step, step == steps, self._population)
        center, rounds = (None, []) if self._cohort is None else (self._cohort.center, self._cohort.rounds)
        return Simulation(
            self._population.mean(), self._population.state_dicts(), center, torch.stack(losses), rounds,
            evaluation.found, time.perf_counter() - begin,
        )  # fmt: skip

    def _step(self) -> Tensor:
        """A local step of all workers, and a round if one is due; the losses, [M]."""
        found = self._pass(*self._shards.draw())
        self._population.step(found.gradients)
        if self._cohort is not None:
            self._cohort.take_in(found)
            due = self._cohort.count_step()
            if due is not None:
                self._cohort.round(due, self._fresh() if self._cohort.wants_fresh(due) else None)
        return found.losses

    def _fresh(self) -> Found:
        """Gradients for the scores alone."""
        if self._held_out is None:
            return self._pass(*self._shards.draw())
        inputs, targets = (part.to(self._population.device) for part in self._held_out)
        return self._pass(*(part.expand(self._population.size, *part.shape) for part in (inputs, targets)))

    def _pass(self, inputs: Tensor, targets: Tensor) -> Found:
        """Forward and backward of all workers."""
        population = self._population
        parameters = {name: parameter.detach() for name, parameter in population.parameters.items()}
        found = self._gradients(parameters, population.buffers, inputs, targets)
        population.buffers = found.buffers
        return found


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers inside the block are those of a seed; after it they go on as if it had not been."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def _with_progress(steps: range, progress: bool) -> Iterable[int]:
    if progress:
        with suppress(ImportError):
            from tqdm import tqdm  # noqa: PLC0415  (an extra)

            bar: Iterable[int] = tqdm(steps, unit="step", mininterval=1)
            return bar
    return steps
