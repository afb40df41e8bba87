"""Do gradient-norm weights help more, or at all, as there are more workers?

The GRAWA paper reports that MGRAWA and LGRAWA keep their lead with 4, 8 and 12 workers. Here 4, 8, 12, 16, 64 and 256
workers share one data set, in the simulator, and each number of workers is allowed the same number of gradients.

- **Setting**: scikit-learn's digits, 1097 to train on, dealt out evenly at random (IID); a 64-32-10 perceptron; SGD
  with momentum 0.9, batches of 8; a round every 4 steps, pull 0.5, proximity 0.01, norms of local gradients. 4096
  gradients of a batch in all: 1024 steps of 4 workers, 16 of 256, to the nearest multiple of 4 steps.
- **Arms**: MGRAWA, LGRAWA. **Control**: uniform, the same in all else.
- **Learning rate**: for each number of workers that of 0.05, 0.1, 0.2 by which *uniform* is best on the validation
  images, of seed 1000, which is used for nothing else. So the choice is in favor of the control.
- **Measured**: test accuracy of the mean of the workers at the end, 5 seeds, paired: data, start, shards and batches.
- **Support for the claim** would be: an arm minus uniform above 0 with its 95% interval at most numbers of workers.
  Of 12 such intervals .6 on average miss 0 by chance alone, so a single one is no finding.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional

import grawa_hvd
from experiments import common, digit_splits
from grawa_hvd.averaging import LGRAWA, MGRAWA, Mix, Uniform

WORKERS, LRS = (4, 8, 12, 16, 64, 256), (0.05, 0.1, 0.2)
GRADIENTS, PERIOD, TUNING = 4096, 4, 1000
ARMS: dict[str, Mix] = {"uniform": Uniform(), "MGRAWA": MGRAWA(floor=0.0), "LGRAWA": LGRAWA(floor=0.0)}


def steps_of(workers: int, gradients: int) -> int:
    """Steps by which so many workers take about so many gradients, and end with a round."""
    return max(1, round(gradients / (workers * PERIOD))) * PERIOD


def accuracy(arm: str, workers: int, lr: float, seed: int, gradients: int, on: str = "test") -> float:
    """That of the mean of the workers at the end of a run, on the "test" or the "validation" images."""
    data = digit_splits.load(seed)
    result = grawa_hvd.simulate(
        digit_splits.perceptron(seed), functional.cross_entropy, data.train, workers=workers, batch_size=8,
        optimizer=partial(torch.optim.SGD, lr=lr, momentum=0.9), steps=steps_of(workers, gradients),
        averaging=ARMS[arm], period=PERIOD, seed=seed, progress=False,
        evaluate=partial(digit_splits.accuracy, data=getattr(data, on)),
    )  # fmt: skip
    return float(result.evaluations[-1][1])


def tuned(found: dict[str, Any], workers: int) -> float:
    """The learning rate that is best for uniform; of equals the least."""
    return max(LRS, key=lambda lr: (found[f"tuning, {workers} workers, lr {lr:g}"], -lr))


def compared(found: dict[str, Any], workers: tuple[int, ...], seeds: int) -> dict[str, Any]:
    """Accuracy (%) of each arm, and the difference from uniform."""
    summary: dict[str, Any] = {}
    for size in workers:
        values = {arm: [100 * found[f"{arm}, {size} workers, seed {seed}"] for seed in range(seeds)] for arm in ARMS}
        for arm, value in values.items():
            summary[f"{size} workers: {arm}"] = common.interval(value)
            if arm != "uniform":
                summary[f"{size} workers: {arm} minus uniform"] = common.paired(value, values["uniform"])
    return summary


def plot(summary: dict[str, Any], workers: tuple[int, ...], file: Path) -> None:
    """Accuracies, and differences from uniform, by the number of workers."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, arm in enumerate(ARMS):
        places = np.arange(len(workers)) + 0.16 * (number - 1)
        values = [summary[f"{size} workers: {arm}"] for size in workers]
        left.errorbar(places, *zip(*values, strict=True), fmt="o", color=f"C{number}", capsize=2.5, label=arm)
        if arm != "uniform":
            values = [summary[f"{size} workers: {arm} minus uniform"] for size in workers]
            right.errorbar(places, *zip(*values, strict=True), fmt="o", color=f"C{number}", capsize=2.5, label=arm)
    for axes, title in ((left, "Test accuracy (%)"), (right, "Minus uniform, paired by seed (points)")):
        axes.set_xticks(range(len(workers)), [f"{size}" for size in workers])
        axes.set_xlabel("workers, an equal number of gradients in all")
        axes.set_title(f"{title}, 95% intervals", loc="left", fontsize=11)
        axes.grid(axis="y", alpha=0.3)
    left.legend(fontsize=8)
    right.axhline(0, color="0.4", linewidth=0.9)
    # With 256 workers differences are tens of points, with fewer less than one: linear up to 1, logarithmic beyond.
    right.set_yscale("symlog", linthresh=1.0)
    ticks = (-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2)
    right.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    right.set_ylim(-80, 3)
    right.minorticks_off()
    figure.savefig(file, dpi=110)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("scaling", __doc__, seeds=5)
    options.add_argument("--gradients", type=int, default=GRADIENTS, help="of a run (default: %(default)s)")
    options.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default: 4 8 12 16 64 256")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Tune for uniform, run, compare, print, draw."""
    options = parse(arguments)
    file, workers = options.out / "scaling.json", tuple(options.workers)
    settings = {"gradients": options.gradients, "period": PERIOD, "batch": 8}
    tuning = {
        f"tuning, {size} workers, lr {lr:g}": partial(
            accuracy, "uniform", size, lr, TUNING, options.gradients, "validation"
        )
        for size in workers for lr in LRS
    }  # fmt: skip
    lrs = common.runs(file, settings, tuning)
    todo = {
        f"{arm}, {size} workers, seed {seed}": partial(accuracy, arm, size, tuned(lrs, size), seed, options.gradients)
        for seed in range(options.seeds) for size in workers for arm in ARMS
    }  # fmt: skip
    summary = compared(common.runs(file, settings, todo), workers, options.seeds)
    common.summarize(file, {f"{size} workers: lr": tuned(lrs, size) for size in workers} | summary)
    for name, (middle, half) in summary.items():
        print(f"{name}: {middle:.2f} ± {half:.2f}")
    plot(summary, workers, options.out / "scaling.png")


if __name__ == "__main__":
    main()
