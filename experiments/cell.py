"""One condition, one arm, five seeds: a simulation, and what is kept of it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, vmap

import grawa_hvd
from experiments.arms import ARMS, Arm
from experiments.conditions import WORKERS, Condition
from experiments.digits import Data, Pair
from experiments.groups import Groups, Optimizer, Watch, reported
from experiments.half_speed import HalfSpeed
from experiments.measures import loss, losses
from experiments.tasks import Task
from grawa_hvd.averaging.policy import Observed
from grawa_hvd.errors import AllWorkersDivergedError

PERIOD, PULL = 32, 0.5
SEEDS = 5  # that share a split
LOOKS_EVERY = 4  # rounds, from one look at the workers themselves to the next


@dataclass(frozen=True)
class Key:
    """What a cell is told apart by.

    Attributes:
        condition: a name of the task's; arm: of `ARMS`.
        split: of the data; the seeds are its own too.
        lr: of the local steps.
    """

    condition: str
    arm: str
    split: int
    lr: float


@dataclass
class Looks:
    """What is seen of the workers in rounds, before the policy weighs them.

    Attributes:
        found: how good they were on test data in some rounds, [M] each; None in the others.
    """

    watch: Watch
    task: Task
    data: Data
    condition: Condition
    needs_losses: bool
    found: list[Tensor | None] = field(default_factory=list)

    def told(self, observed: Observed) -> Observed:
        """The workers as they report the loss on held-out data, and the samples that they have really used."""
        due, (inputs, targets) = (len(self.found) + 1) % LOOKS_EVERY == 0, self.data.test
        self.found.append(self.task.goodness(self.watch.outputs(inputs), targets) if due else None)
        is_slow = torch.arange(len(observed.samples)) % WORKERS < self.condition.slow
        observed = reported(observed, samples=torch.where(is_slow, observed.samples / 2, observed.samples))
        if not self.needs_losses:
            return observed
        inputs, targets = self.data.held_out
        return reported(observed, losses=losses(self.watch.outputs(inputs), targets))


def shards(condition: Condition, arm: Arm, data: Data, split: int, seeds: int) -> list[Pair]:
    """The data of all workers of all groups; the same for every arm but one."""
    dealt: list[Pair] = []
    for seed in range(seeds):
        dealt += condition.deal(data.train, torch.Generator().manual_seed(1000 * split + seed))
    if arm.trains_on_held_out:
        dealt = [(torch.cat([x, data.held_out[0]]), torch.cat([y, data.held_out[1]])) for x, y in dealt]
    return dealt


def optimizer_of(condition: Condition, task: Task, lr: float, seeds: int) -> Optimizer:
    """The optimizer of the local steps; slow workers make every second one alone."""
    if not condition.slow:
        return partial(task.optimizer, lr=lr)
    is_slow = torch.arange(WORKERS * seeds) % WORKERS < condition.slow
    return partial(HalfSpeed, slow=is_slow, lr=lr, momentum=0.9)


def starts(task: Task, split: int, seeds: int) -> list[nn.Module]:
    """What the workers of each seed start from."""
    models = []
    for seed in range(seeds):
        torch.manual_seed(1000 * split + seed)
        models.append(task.model())
    return models


def run(task: Task, key: Key, seeds: int = SEEDS) -> dict[str, Any]:
    """Train and measure.

    Returns:
        For each seed how good on test data the "plain" mean of the workers is, the last "center" and a "worker" of its
        own (the mean over them), the "correlation" of weights and goodness (None where weights are equal), and the
        "effective" number of workers. If all workers of a seed diverge, "diverged", and chance for every seed.
    """
    begin = time.perf_counter()
    try:
        found = trained(task, key, seeds)
    except AllWorkersDivergedError:
        chance = [task.chance] * seeds
        found = {"plain": chance, "center": chance, "worker": chance, "correlation": [None] * seeds,
                 "effective": [float(WORKERS)] * seeds, "diverged": True}  # fmt: skip
    return {**asdict(key), "seconds": time.perf_counter() - begin, **found}


def trained(task: Task, key: Key, seeds: int) -> dict[str, Any]:
    """See `run`."""
    given, arm, data = task.conditions[key.condition], ARMS[key.arm], task.load(key.split)
    models = starts(task, key.split, seeds)
    watch = Watch(models, WORKERS, optimizer_of(given, task, key.lr, seeds))
    looks = Looks(watch, task, data, given, needs_losses=key.arm == "loss_heldout")
    groups = Groups(arm.mix(given), WORKERS, looks.told)
    simulation = grawa_hvd.simulate(
        models[0], loss, shards(given, arm, data, key.split, seeds), optimizer=watch.optimizer,
        steps=task.rounds * PERIOD, batch_size=task.batch_size, averaging=groups, period=PERIOD, pull=PULL,
        proximity=0.0, seed=key.split, scores=data.held_out if arm.scores == "held out" else arm.scores, progress=False,
    )  # fmt: skip
    names = simulation.rounds[-1].layer_names
    last = dict(zip(names, groups.weights[-1].unbind(dim=1), strict=True))
    equal = {name: torch.full((len(groups.weights[-1]),), 1 / WORKERS) for name in names}
    plain, center = (averaged(simulation.workers, weights) for weights in (equal, last))
    own = measured(models[0], task, simulation.workers, data.test)
    return {
        "plain": measured(models[0], task, plain, data.test), "center": measured(models[0], task, center, data.test),
        "worker": by_group(torch.tensor(own)).mean(dim=1).tolist(),
        "correlation": correlations(groups.weights, looks.found), "effective": effective(torch.stack(groups.weights)),
    }  # fmt: skip


def averaged(workers: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each group by weights of each layer, [groups, ...].

    By the weights of the last round it is the centre of that round: all were pulled to it by the same part.
    """
    found = {}
    for name, stacked in workers.items():
        own = weights[name].to(stacked.dtype).view(-1, *[1] * (stacked.dim() - 1))
        found[name] = by_group(torch.where(own > 0, own * stacked, 0.0)).sum(dim=1)
    return found


def by_group(values: Tensor) -> Tensor:
    """[M, ...] → [groups, workers of a group, ...]."""
    return values.reshape(-1, WORKERS, *values.shape[1:])


@torch.no_grad()
def measured(model: nn.Module, task: Task, stacked: dict[str, Tensor], test: Pair) -> list[float]:
    """How good each of the stacked models is."""
    outputs = vmap(lambda own: functional_call(model, own, (test[0],)))(stacked)
    return [float(value) for value in task.goodness(outputs, test[1])]


def correlations(weights: list[Tensor], looks: list[Tensor | None]) -> list[float | None]:
    """Spearman's rank correlation of workers' weights and goodness, the mean over rounds, for each group."""
    found: list[list[float]] = [[] for _ in by_group(weights[0])]
    for of_round, seen in zip(weights, looks, strict=True):
        if seen is None:
            continue
        for number, (own, good) in enumerate(zip(by_group(of_round.mean(dim=1)), by_group(seen), strict=True)):
            if len(own.unique()) > 1 and len(good.unique()) > 1:
                found[number].append(float(spearmanr(own, good).statistic))
    return [sum(values) / len(values) if values else None for values in found]


def effective(weights: Tensor) -> list[float]:
    """1/Σβ², the mean over rounds and layers, for each group: [rounds, M, L] → groups numbers."""
    grouped = weights.reshape(len(weights), -1, WORKERS, weights.shape[2])
    return [float(one) for one in grouped.square().sum(dim=2).reciprocal().mean(dim=(0, 2))]
