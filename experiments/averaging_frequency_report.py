"""What follows from the runs of `experiments.averaging_frequency`, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from statistics import fmean
from typing import Any

import numpy as np

from experiments import common

LOSSES = ("convex", "strongly convex", "non-convex")
STARTS = ("shared", "own")
GOAL = 0.9


def steps_to(accuracies: list[tuple[int, float]]) -> float:
    """The first step after which the accuracy was at least 90%; infinite if it never was."""
    return next((step for step, accuracy in accuracies if accuracy >= GOAL), float("inf"))


def runs_of(found: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """Those of all seeds."""
    return [run for name, run in found.items() if name.startswith(f"{prefix}, seed ")]


def weighted_runs(found: Mapping[str, Any], loss: str, start: str) -> list[dict[str, Any]]:
    """Those of part 3 with disjoint shards."""
    longest = periods_of(found, "divergence")[-1]
    return runs_of(found, f"divergence, {loss}, period {longest}, {start} start, common 0")


def periods_of(found: Mapping[str, Any], part: str) -> list[int]:
    """The periods that a part has runs of."""
    return sorted({int(name.split("period ")[1].split(",")[0]) for name in found if name.startswith(part)})


def summary_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """What each part says, by name: means and halves of 95% intervals."""
    return {**_quadratics(found), **_frequency(found), **_divergence(found), **_best(found)}


def _quadratics(found: Mapping[str, Any]) -> dict[str, Any]:
    rows = [run for name, run in found.items() if name.startswith("quadratic")]
    off = [(row["sampled"] - row["closed_form"]) / row["standard_error"] for row in rows]
    return {"closed form: largest error, in standard errors": max(map(abs, off))}


def _frequency(found: Mapping[str, Any]) -> dict[str, Any]:
    """Each period beside the shortest: steps to 90% as a multiple, and points of accuracy at the end."""
    summary: dict[str, Any] = {}
    first, *others = periods_of(found, "frequency")
    for loss in LOSSES:
        name = f"frequency, {loss}, period {{}}, shared start, common 0"
        control = runs_of(found, name.format(first))
        summary[f"{loss}: steps to 90%, period {first}"] = fmean(steps_to(run["accuracies"]) for run in control)
        for period in others:
            runs = runs_of(found, name.format(period))
            pairs = [(steps_to(a["accuracies"]), steps_to(b["accuracies"])) for a, b in zip(runs, control, strict=True)]
            reached = all(np.isfinite(pair).all() for pair in pairs)
            ratio = common.interval([one / other for one, other in pairs]) if reached else None
            summary[f"{loss}: steps to 90%, period {period} / period {first}"] = ratio
            ends = [[100 * run["accuracies"][-1][1] for run in part] for part in (runs, control)]
            summary[f"{loss}: accuracy, period {period} − period {first}"] = common.paired(*ends)
    return summary


def _divergence(found: Mapping[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for loss, period in product(LOSSES, periods_of(found, "divergence")):
        name = f"divergence, {loss}, period {period}, {{}} start, common {{}}"
        means = {
            (s, c): [100 * r["mean"] for r in runs_of(found, name.format(s, c))] for s in STARTS for c in ("0", "0.5")
        }
        case = f"{loss}, period {period}: accuracy of the mean,"
        summary[f"{case} shared − own start"] = common.paired(means["shared", "0"], means["own", "0"])
        for start in STARTS:
            found_effect = common.paired(means[start, "0.5"], means[start, "0"])
            summary[f"{case} common − disjoint, {start} start"] = found_effect
            runs = runs_of(found, name.format(start, "0"))
            distances = common.interval([run["distance"] for run in runs])
            summary[f"{loss}, period {period}: distance / ‖mean‖, {start} start"] = distances
            gains = [100 * (run["mean"] - run["own"]) for run in runs]
            summary[f"{loss}, period {period}: mean minus workers, {start} start"] = common.interval(gains)
    return summary


def _best(found: Mapping[str, Any]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for loss, start in product(LOSSES, STARTS):
        runs = weighted_runs(found, loss, start)
        for other in ("mean", "chosen"):
            gains = [100 * (run["weighted"] - run[other]) for run in runs]
            summary[f"{loss}, {start} start: best weights minus {other}"] = common.interval(gains)
        summary[f"{loss}, {start} start: largest weight"] = common.interval([max(run["weights"]) for run in runs])
    return summary
