"""One condition, one arm, five seeds: a simulation, and what is kept of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

import grawa_hvd
from experiments.arms import ARMS, Arm
from experiments.conditions import CONDITIONS, WORKERS, Condition
from experiments.digits import MODELS, Digits, Pair, load
from experiments.groups import Groups, Watch, reported
from experiments.half_speed import HalfSpeed
from grawa_hvd.averaging.policy import Observed

LOOKS_EVERY = 4  # rounds, from one look at the workers themselves to the next


@dataclass(frozen=True)
class Training:
    """How every worker trains.

    Attributes:
        model: a name of `MODELS`.
        lr: of SGD with momentum .9.
        rounds, period: so rounds · period local steps.
        batch_size: samples of a step.
        pull: part of the way to the centre in a round.
        seeds: that share a split, and a simulation.
    """

    model: str = "mlp"
    lr: float = 0.03
    rounds: int = 20
    period: int = 32
    batch_size: int = 16
    pull: float = 0.5
    seeds: int = 5


@dataclass
class Looks:
    """What is seen of the workers in rounds, before the policy weighs them.

    Attributes:
        accuracies: on test digits in some rounds, [M] each; None in the others.
    """

    watch: Watch
    digits: Digits
    condition: Condition
    needs_losses: bool
    accuracies: list[Tensor | None] = field(default_factory=list)

    def told(self, observed: Observed) -> Observed:
        """The workers as they report the loss on held-out digits, and the samples that they have really used."""
        due = (len(self.accuracies) + 1) % LOOKS_EVERY == 0
        self.accuracies.append(accuracy(self.watch.outputs(self.digits.test[0]), self.digits.test[1]) if due else None)
        is_slow = torch.arange(len(observed.samples)) % WORKERS < self.condition.slow
        observed = reported(observed, samples=torch.where(is_slow, observed.samples / 2, observed.samples))
        if not self.needs_losses:
            return observed
        images, labels = self.digits.held_out
        outputs = self.watch.outputs(images)
        losses = functional.cross_entropy(outputs.movedim(-1, 1), labels.expand(len(outputs), -1), reduction="none")
        return reported(observed, losses=losses.mean(dim=1))


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Part of the labels that are right, of each of M models: outputs [M, N, classes] → [M]."""
    return (outputs.argmax(dim=-1) == labels).double().mean(dim=1)


def shards(condition: Condition, arm: Arm, digits: Digits, split: int, seeds: int) -> list[Pair]:
    """The data of all workers of all groups; the same for every arm but one."""
    dealt: list[Pair] = []
    for seed in range(seeds):
        dealt += condition.deal(digits.train, torch.Generator().manual_seed(1000 * split + seed))
    if arm.trains_on_held_out:
        dealt = [(torch.cat([x, digits.held_out[0]]), torch.cat([y, digits.held_out[1]])) for x, y in dealt]
    return dealt


def optimizer_of(condition: Condition, training: Training) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """The optimizer of the local steps; slow workers make every second one alone."""
    settings: dict[str, Any] = {"lr": training.lr, "momentum": 0.9}
    if not condition.slow:
        return partial(torch.optim.SGD, **settings)
    workers = WORKERS * training.seeds
    is_slow = torch.arange(workers) % WORKERS < condition.slow
    return partial(HalfSpeed, slow=is_slow, **settings)


def starts(training: Training, split: int) -> list[nn.Module]:
    """What the workers of each seed start from."""
    models = []
    for seed in range(training.seeds):
        torch.manual_seed(1000 * split + seed)
        models.append(MODELS[training.model]())
    return models


def run(condition: str, arm: str, split: int, training: Training) -> dict[str, Any]:
    """Train and measure.

    Args:
        condition: a name of `CONDITIONS`; arm: of `ARMS`.
        split: of the digits; the seeds are its own too.

    Returns:
        For each seed accuracies from 0 to 1 of the "plain" mean of the workers on test digits and on "held_out" ones,
        of the last "center", of a "worker" of its own (the mean over them), the "correlation" of weights and
        accuracies (None where weights are equal), and the "effective" number of workers.
    """
    begin, given, chosen = time.perf_counter(), CONDITIONS[condition], ARMS[arm]
    digits, models = load(split), starts(training, split)
    watch = Watch(models, WORKERS, optimizer_of(given, training))
    looks = Looks(watch, digits, given, needs_losses=arm == "loss_heldout")
    groups = Groups(chosen.mix(given), WORKERS, looks.told)
    simulation = grawa_hvd.simulate(
        models[0], functional.cross_entropy, shards(given, chosen, digits, split, training.seeds),
        optimizer=watch.optimizer, steps=training.rounds * training.period, batch_size=training.batch_size,
        averaging=groups, period=training.period, pull=training.pull, proximity=0.0, seed=split,
        scores=digits.held_out if chosen.scores == "held out" else chosen.scores, progress=False,
    )  # fmt: skip
    names = simulation.rounds[-1].layer_names
    last = dict(zip(names, groups.weights[-1].unbind(dim=1), strict=True))
    equal = {name: torch.full((len(groups.weights[-1]),), 1 / WORKERS) for name in names}
    plain, center = (averaged(simulation.workers, weights) for weights in (equal, last))
    return {
        "condition": condition, "arm": arm, "split": split, "seconds": time.perf_counter() - begin,
        "plain": measured(models[0], plain, digits.test), "held_out": measured(models[0], plain, digits.held_out),
        "center": measured(models[0], center, digits.test),
        "worker": by_group(torch.tensor(measured(models[0], simulation.workers, digits.test))).mean(dim=1).tolist(),
        "correlation": correlations(groups.weights, looks.accuracies),
        "effective": effective(torch.stack(groups.weights)),
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
def measured(model: nn.Module, stacked: dict[str, Tensor], test: Pair) -> list[float]:
    """The accuracy of each of the stacked models."""
    outputs = vmap(lambda own: functional_call(model, own, (test[0],)))(stacked)
    return [float(value) for value in accuracy(outputs, test[1])]


def correlations(weights: list[Tensor], accuracies: list[Tensor | None]) -> list[float | None]:
    """Spearman's rank correlation of workers' weights and accuracies, the mean over rounds, for each group."""
    found: list[list[float]] = [[] for _ in by_group(weights[0])]
    for of_round, seen in zip(weights, accuracies, strict=True):
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
