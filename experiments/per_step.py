"""Does rare averaging keep pace with gradient averaging at equal steps, each at a learning rate of its own?

The protocol is in experiments/README.md. Every cell is kept when it is finished, and skipped the next time.

    python -m experiments.per_step
    python -m experiments.per_step --constant                   # the learning rate does not drop
    python -m experiments.per_step --workers 4 --seeds 5
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import torch

from experiments import common, digit_splits
from experiments.per_step_plot import plot
from experiments.per_step_report import summary_of
from experiments.stacked import DROPS, Groups, Job, Plan
from experiments.stacked_accuracy import Images
from grawa_hvd.averaging import LGRAWA, Uniform

BATCH, STEPS, PROXIMITY = 16, 192, 0.01
WORKERS, LRS, TUNING = (4, 8), (0.02, 0.05, 0.1, 0.2, 0.4), (1000, 1001, 1002)
POLICIES = {"uniform": Uniform(), "lgrawa": LGRAWA(floor=0.0)}
OUTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "momentum .5": {"outer_momentum": 0.5},
    "Nesterov": {"outer_optimizer": partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)},
}


class Arm(NamedTuple):
    """A way to average models."""

    policy: str
    period: int
    pull: float
    outer: str

    def __str__(self) -> str:
        return f"{self.policy}, period {self.period}, pull {self.pull:g}, outer {self.outer}"

    def job(self, seed: int, lr: float) -> Job:
        """A run of it."""
        policy = POLICIES[self.policy]
        start, data = digit_splits.perceptron(seed), digit_splits.load(seed).train
        return Job(start, data, seed, lr, policy, self.pull, PROXIMITY, **OUTERS[self.outer])


ARMS = [Arm(*each) for each in product(POLICIES, (4, 16, 64), (0.5, 1.0), OUTERS)]
Gradients = str  # "gradients": the mean of the gradients at every step
Found = dict[str, Any]


class Training(NamedTuple):
    """How workers train; `drops` are of `Plan`."""

    workers: int
    steps: int
    drops: tuple[float, ...]


def runs(
    arm: Arm | Gradients, training: Training, lrs: tuple[float, ...], seeds: tuple[int, ...], on: str = "test"
) -> list[Found]:
    """Train with each seed at each learning rate, and measure on the "test" or the "validation" images.

    Returns:
        For each seed and learning rate, the latter first, accuracies from 0 to 1: the "mean" of the workers at the end,
        and over the steps ("curve"); and the mean of the workers' "own" models' just before the last round.
    """
    workers, steps, drops = training
    made = ARMS[0] if isinstance(arm, str) else arm
    cases = list(product(seeds, lrs))
    period = None if isinstance(arm, str) else arm.period
    groups = Groups([made.job(*case) for case in cases], Plan(workers, BATCH, steps, period, drops=drops))
    images = Images.of([getattr(digit_splits.load(seed), on) for seed, _ in cases])
    looks = [found for _, found in groups.train(max(1, steps // 12), images.of_means)]
    own = images.of_workers(groups, groups.workers if isinstance(arm, str) else groups.before_round)
    curves = torch.stack(looks, dim=1).tolist()
    return [{"mean": curve[-1], "own": float(each), "curve": curve} for curve, each in zip(curves, own, strict=True)]


def tuning(arm: Arm | Gradients, training: Training) -> dict[str, list[float]]:
    """Learning rate → validation accuracies of the mean of the workers, of the tuning seeds."""
    found = [round(run["mean"], 5) for run in runs(arm, training, LRS, TUNING, "validation")]
    return {f"{lr:g}": found[number :: len(LRS)] for number, lr in enumerate(LRS)}


def chosen(found: Mapping[str, Any], arm: Arm | Gradients, workers: int) -> float:
    """The learning rate that was best for an arm; of equals the least."""
    return max(LRS, key=lambda lr: (fmean(found[f"tuning, {arm}, {workers} workers"][f"{lr:g}"]), -lr))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("per_step", __doc__, seeds=14)
    options.add_argument("--steps", type=int, default=STEPS, help="a multiple of 64 (default: %(default)s)")
    options.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default: 4 8")
    options.add_argument("--constant", action="store_true", help="the learning rate does not drop")
    parsed = options.parse_args(arguments)
    if parsed.steps < 64 or parsed.steps % 64:
        options.error(f"--steps must be a multiple of 64, the longest period, but is {parsed.steps}")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Tune, run, compare, print, draw."""
    options = parse(arguments)
    torch.set_num_threads(1)  # the tensors are small
    file = options.out / f"per_step{'_constant' * options.constant}.json"
    settings = {"seeds": options.seeds, "steps": options.steps, "batch": BATCH, "proximity": PROXIMITY}
    of = {size: Training(size, options.steps, () if options.constant else DROPS) for size in options.workers}
    arms: list[Arm | Gradients] = ["gradients", *ARMS]
    cases = [(arm, workers) for workers in options.workers for arm in arms]
    rates = {f"tuning, {arm}, {workers} workers": partial(tuning, arm, of[workers]) for arm, workers in cases}
    tuned = common.runs(file, settings, rates)
    lrs = {case: chosen(tuned, *case) for case in cases}
    seeds = tuple(range(options.seeds))
    todo = {
        f"{arm}, {workers} workers": partial(runs, arm, of[workers], (lrs[arm, workers],), seeds)
        for arm, workers in cases
    }
    summary = summary_of(common.runs(file, settings, todo), ARMS, options.workers)
    summary = {f"{arm}, {workers} workers: lr": lr for (arm, workers), lr in lrs.items()} | summary
    common.summarize(file, summary)
    for name, value in summary.items():
        print(f"{name}: {value}")
    plot(summary, ARMS, options.workers, options.steps, file.with_suffix(".png"))


if __name__ == "__main__":
    main()
