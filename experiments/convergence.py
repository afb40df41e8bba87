"""The GRAWA paper's comparison, on digits of which a fifth of the training labels are wrong.

The protocol is in experiments/README.md. Every cell is kept when it is finished, and skipped the next time.

    python -m experiments.convergence
    python -m experiments.convergence --workers 4 --seeds 5
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from itertools import product
from statistics import fmean
from typing import Any

import torch

from experiments import common
from experiments.convergence_arms import ARMS, Arm, Setting, named
from experiments.convergence_plot import plot
from experiments.convergence_report import summary_of
from experiments.convergence_runs import Run, measured, stack

WORKERS, LRS, SAMPLES = (4, 8), (0.02, 0.05, 0.1, 0.2), 40960
RATE_SEEDS, GRID_SEEDS = (1000, 1001, 1002), (1003, 1004)
Found = Mapping[str, Any]


def validation_errors(arm: Arm, workers: int, samples: int, runs: list[Run]) -> list[float]:
    """Percent of each run."""
    found = measured(stack(arm, workers, samples, runs), runs, ["validation"])
    return [result["validation"] for result in found]


def rates(arm: Arm, setting: Setting, workers: int, samples: int) -> dict[str, float]:
    """Learning rate → mean validation error of the tuning seeds."""
    runs = [Run(setting, lr, seed) for lr, seed in product(LRS, RATE_SEEDS)]
    errors = validation_errors(arm, workers, samples, runs)
    size = len(RATE_SEEDS)
    return {f"{lr:g}": fmean(errors[size * number : size * (number + 1)]) for number, lr in enumerate(LRS)}


def grid(arm: Arm, settings: list[Setting], lr: float, workers: int, samples: int) -> dict[str, float]:
    """Setting → mean validation error of other tuning seeds."""
    runs = [Run(setting, lr, seed) for setting, seed in product(settings, GRID_SEEDS)]
    errors = validation_errors(arm, workers, samples, runs)
    size = len(GRID_SEEDS)
    return {named(setting): fmean(errors[size * n : size * (n + 1)]) for n, setting in enumerate(settings)}


def ends(arm: Arm, setting: Setting, lr: float, workers: int, samples: int, seeds: int, is_control: bool) -> list[Any]:
    """What `measured` says of each seed."""
    runs = [Run(setting, lr, seed) for seed in range(seeds)]
    return measured(stack(arm, workers, samples, runs, is_control), runs)


def least(errors: Mapping[str, float]) -> str:
    """The name with the least error; of equals the first."""
    return min(errors, key=errors.__getitem__)


def rate_cases(workers: int, samples: int) -> dict[str, Any]:
    """Name → what chooses the learning rate of an arm; for gradient averaging, of each batch."""
    return {
        f"rates, {name}, {workers} workers, {named(setting)}": partial(rates, arm, setting, workers, samples)
        for name, arm in ARMS.items() for setting in arm.middle()
    }  # fmt: skip


def grid_cases(tuned: Found, workers: int, samples: int) -> dict[str, Any]:
    """Name → the errors of an arm's settings with a period; for gradient averaging those of each batch are known."""
    cases = {}
    for name, arm in ARMS.items():
        if arm.averages == "models":
            lr = rate_of(tuned, name, workers, arm.middle()[0])
            for period in arm.periods:
                settings = [setting for setting in arm.settings() if setting["period"] == period]
                key = f"grid, {name}, {workers} workers, period {period}"
                cases[key] = partial(grid, arm, settings, lr, workers, samples)
    return cases


def rate_of(tuned: Found, name: str, workers: int, setting: Setting) -> float:
    """The learning rate that was chosen."""
    return float(least(tuned[f"rates, {name}, {workers} workers, {named(setting)}"]))


def chosen(tuned: Found, name: str, workers: int) -> tuple[Setting, float]:
    """The setting and the learning rate of an arm."""
    arm = ARMS[name]
    if arm.averages == "models":
        tables = [tuned[f"grid, {name}, {workers} workers, period {period}"] for period in arm.periods]
        best = least({key: error for table in tables for key, error in table.items()})
        return next(each for each in arm.settings() if named(each) == best), rate_of(
            tuned, name, workers, arm.middle()[0]
        )
    errors = {
        named(each): min(tuned[f"rates, {name}, {workers} workers, {named(each)}"].values()) for each in arm.settings()
    }
    setting = next(each for each in arm.settings() if named(each) == least(errors))
    return setting, rate_of(tuned, name, workers, setting)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("convergence", __doc__, seeds=14)
    options.add_argument("--samples", type=int, default=SAMPLES, help="of a run (default: %(default)s)")
    options.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="default: 4 8")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Tune, run, compare, print, draw."""
    options = parse(arguments)
    torch.set_num_threads(1)  # the tensors are small
    file, samples, sizes = options.out / "convergence.json", options.samples, options.workers
    run = partial(common.runs, file, {"samples": samples, "seeds": options.seeds})
    tuned = run({key: case for size in sizes for key, case in rate_cases(size, samples).items()})
    tuned |= run({key: case for size in sizes for key, case in grid_cases(tuned, size, samples).items()})
    todo, settings = {}, {}
    for size, (name, arm) in product(sizes, ARMS.items()):
        setting, lr = settings[name, size] = chosen(tuned, name, size)
        for is_control in (False, True) if arm.has_control else (False,):
            key = f"{'control of ' if is_control else ''}{name}, {size} workers"
            todo[key] = partial(ends, arm, setting, lr, size, samples, options.seeds, is_control)
    summary = summary_of(run(todo), settings, tuned, samples)
    common.summarize(file, summary)
    for key, value in summary.items():
        print(f"{key}: {value}")
    plot(summary, sizes, options.out / "convergence.png")


if __name__ == "__main__":
    main()
