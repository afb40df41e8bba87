"""How flat the minima are in which the runs of `experiments.convergence` end: the Hessian of the training loss.

The protocol is in experiments/README.md. It needs the results of `experiments.convergence` and curvlinops. Every cell
is kept when it is finished, and skipped the next time.

    python -m experiments.flatness
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import torch

from experiments import common, digit_splits, noisy_digits
from experiments.convergence import chosen
from experiments.convergence_arms import ARMS, Setting
from experiments.convergence_runs import HIDDEN, Run, measured, stack
from experiments.flatness_plot import plot
from experiments.flatness_report import summary_of
from experiments.stacked import Groups
from grawa_hvd.flatness import flatness

ITERATIONS, VECTORS = 100, 30


def measurements(
    start: Callable[[list[Run]], Groups], setting: Setting, lr: float, before: list[Any], vectors: int = VECTORS
) -> list[dict[str, float]]:
    """Make the runs again, and measure the mean of the workers of each seed.

    Args:
        start: of runs, their groups.
        setting, lr: of the runs.
        before: what `convergence` said of each seed.
        vectors: for what is outside of Lanczos' directions.

    Raises:
        ValueError: if the runs end elsewhere than they did.
    """
    runs = [Run(setting, lr, seed) for seed in range(len(before))]
    groups = start(runs)
    errors = [result["test"] for result in measured(groups, runs)]
    recorded = [result["test"] for result in before]
    if errors != recorded:
        raise ValueError(f"the runs must end with the errors of convergence.json, {recorded}, but have {errors}")
    found = []
    for run, *values in zip(runs, *groups.means().values(), strict=True):
        model = digit_splits.perceptron(run.seed, HIDDEN)
        model.load_state_dict(dict(zip(groups.workers, values, strict=True)))
        data = [noisy_digits.load(run.seed).train]
        seen = flatness(
            model, "cross_entropy", data, iterations=ITERATIONS, vectors=vectors, seed=run.seed, progress=False
        )
        found.append({
            "norm": round(seen.frobenius_norm.value, 5), "norm_error": round(seen.frobenius_norm.error, 5),
            "lanczos_norm": round(seen.lanczos_norm, 5), "trace": round(seen.trace.value, 4),
            "largest": round(seen.largest_eigenvalue.value, 5), "loss": round(seen.loss, 6),
        })  # fmt: skip
    return found


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.flatness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=int, default=VECTORS, help="random ones (default: %(default)s)")
    return common.parsed_after_convergence(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, compare, print, draw."""
    options = parse(arguments)
    torch.set_num_threads(1)  # the tensors are small
    content: Mapping[str, Any] = json.loads((options.out / "convergence.json").read_text())
    before, samples = content["runs"], content["settings"]["samples"]
    sizes = sorted({int(key.split(", ")[-1].split()[0]) for key in before if key.startswith("control of ")})
    todo = {}
    for size, (name, arm) in product(sizes, ARMS.items()):
        setting, lr = chosen(before, name, size)
        for is_control in (False, True) if arm.has_control else (False,):
            key = f"{'control of ' if is_control else ''}{name}, {size} workers"
            start = partial(stack, arm, size, samples, is_control=is_control)
            todo[key] = partial(measurements, start, setting, lr, before[key], options.vectors)
    settings = {**content["settings"], "iterations": ITERATIONS, "vectors": options.vectors}
    found = common.runs(options.out / "flatness.json", settings, todo)
    summary = summary_of(found, before, sizes)
    common.summarize(options.out / "flatness.json", summary)
    for key, value in summary.items():
        print(f"{key}: {value}")
    plot(found, before, sizes, options.out / "flatness.png")


if __name__ == "__main__":
    main()
