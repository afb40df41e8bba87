"""Does rare averaging keep pace with gradient averaging at equal steps, each at a learning rate of its own?

The protocol is in experiments/README.md. Every cell is kept when it is finished, and skipped the next time.

    python -m experiments.per_step
    python -m experiments.per_step --workers 4 --seeds 5
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

import grawa_hvd
from experiments import common, digit_splits, gradient_averaging
from experiments.dropping_sgd import DroppingSGD
from experiments.per_step_plot import plot
from experiments.per_step_report import summary_of

BATCH, STEPS, PROXIMITY = 16, 192, 0.01
WORKERS, LRS, TUNING = (4, 8), (0.02, 0.05, 0.1, 0.2, 0.4), (1000, 1001, 1002)
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


ARMS = [Arm(*each) for each in product(("uniform", "lgrawa"), (4, 16, 64), (0.5, 1.0), OUTERS)]
Gradients = str  # "gradients": the mean of the gradients at every step
Found = dict[str, Any]


def run(arm: Arm | Gradients, workers: int, lr: float, seed: int, steps: int, on: str = "test") -> Found:
    """Train, and measure on the "test" or the "validation" images.

    Returns:
        Accuracies from 0 to 1: the "mean" of the workers at the end, and over the steps ("curve"); and the mean of the
        workers' "own" models' just before the last round. Of a run in which all workers diverge they are 0.
    """
    images = getattr(digit_splits.load(seed), on)
    train = _by_gradients if isinstance(arm, str) else partial(_by_models, arm)
    try:
        curve, own = train(workers, lr, seed, steps, images)
    except grawa_hvd.AllWorkersDivergedError:
        return {"mean": 0.0, "own": 0.0, "curve": [0.0]}
    return {"mean": curve[-1], "own": round(own, 5), "curve": curve}


def _by_gradients(workers: int, lr: float, seed: int, steps: int, images: digit_splits.Pair) -> tuple[list[float], float]:
    trained = gradient_averaging.train(
        digit_splits.perceptron(seed), digit_splits.load(seed).train, partial(DroppingSGD, lr=lr, steps=steps),
        workers=workers, batch_size=BATCH, steps=steps, seed=seed,
    )  # fmt: skip
    due = (model for step, model in enumerate(trained, 1) if step % _every(steps) == 0)
    curve = [round(digit_splits.accuracy(model, images), 5) for model in due]
    return curve, curve[-1]


def _by_models(
    arm: Arm, workers: int, lr: float, seed: int, steps: int, images: digit_splits.Pair
) -> tuple[list[float], float]:
    model, made = digit_splits.perceptron(seed), list[DroppingSGD]()

    def optimizer(parameters: list[nn.Parameter]) -> DroppingSGD:
        made.append(DroppingSGD(parameters, lr, steps))
        return made[-1]

    result = grawa_hvd.simulate(
        model, functional.cross_entropy, digit_splits.load(seed).train, workers=workers, batch_size=BATCH, steps=steps,
        optimizer=optimizer, averaging=arm.policy, period=arm.period, pull=arm.pull, proximity=PROXIMITY, seed=seed,
        evaluate=partial(digit_splits.accuracy, data=images), every=_every(steps), progress=False, **OUTERS[arm.outer],
    )  # fmt: skip
    last = next(each.last for each in made if each.last)  # those that were only tried out made fewer steps
    own = dict(zip(dict(model.named_parameters()), last, strict=True))
    curve = [round(accuracy, 5) for _, accuracy in result.evaluations]
    return curve, fmean(digit_splits.own_accuracies(model, own, images))


def _every(steps: int) -> int:
    return max(1, steps // 12)


def tuning(arm: Arm | Gradients, workers: int, lr: float, steps: int) -> list[float]:
    """Validation accuracies of the mean of the workers, of the tuning seeds."""
    return [run(arm, workers, lr, seed, steps, "validation")["mean"] for seed in TUNING]


def chosen(found: Mapping[str, Any], arm: Arm | Gradients, workers: int) -> float:
    """The learning rate that was best for an arm; of equals the least."""
    return max(LRS, key=lambda lr: (fmean(found[_tuning(arm, workers, lr)]), -lr))


def _tuning(arm: Arm | Gradients, workers: int, lr: float) -> str:
    return f"tuning, {arm}, {workers} workers, lr {lr:g}"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("per_step", __doc__, seeds=14)
    options.add_argument("--steps", type=int, default=STEPS, help="a multiple of 64 (default: %(default)s)")
    options.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default: 4 8")
    parsed = options.parse_args(arguments)
    if parsed.steps < 64 or parsed.steps % 64:
        options.error(f"--steps must be a multiple of 64, the longest period, but is {parsed.steps}")
    return parsed


def main(arguments: list[str] | None = None) -> None:
    """Tune, run, compare, print, draw."""
    options = parse(arguments)
    torch.set_num_threads(1)  # the tensors are small
    file, steps = options.out / "per_step.json", options.steps
    settings = {"steps": steps, "batch": BATCH, "proximity": PROXIMITY}
    cases = [(arm, workers) for workers in options.workers for arm in ("gradients", *ARMS)]
    rates = {_tuning(*case, lr): partial(tuning, *case, lr, steps) for case in cases for lr in LRS}
    tuned = common.runs(file, settings, rates)
    lrs = {case: chosen(tuned, *case) for case in cases}
    todo: dict[str, Callable[[], Any]] = {
        f"{arm}, {workers} workers, seed {seed}": partial(run, arm, workers, lrs[arm, workers], seed, steps)
        for arm, workers in cases for seed in range(options.seeds)
    }  # fmt: skip
    summary = summary_of(common.runs(file, settings, todo), ARMS, options.workers, options.seeds)
    summary = {f"{arm}, {workers} workers: lr": lr for (arm, workers), lr in lrs.items()} | summary
    common.summarize(file, summary)
    for name, value in summary.items():
        print(f"{name}: {value}")
    plot(summary, ARMS, options.workers, steps, options.out / "per_step.png")


if __name__ == "__main__":
    main()
