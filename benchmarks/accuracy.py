"""The tables of accuracies: the demo's, and the simulated workers'."""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from benchmarks.tables import markdown, results
from experiments.common import paired
from experiments.comparison import signed


def digits() -> str:
    """The demo over its seeds, and what the ways differ by from the first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in results("digits")["runs"]:
        runs.setdefault(run["name"], []).append(run)
    control = [run["accuracy"] for run in next(iter(runs.values()))]
    rows = []
    for name, own in runs.items():
        accuracies, alone = ([run[key] for run in own] for key in ("accuracy", "own_accuracy"))
        means = {key: mean(run[key] for run in own) for key in ("communications", "bytes", "communicating", "seconds")}
        rows.append([
            f"`{name}`", _percent(accuracies), _difference(accuracies, control), _percent(alone),
            f"{means['communications']:.0f}", f"{means['bytes'] / 1e6:.2f}", f"{means['communicating']:.1f}",
            f"{means['seconds']:.1f}",
        ])  # fmt: skip
    head = ["test accuracy", "difference", "a worker's own model", "communications", "MB sent", "s communicating"]
    return markdown([*head, "s in all"], rows)


def simulated() -> str:
    """Accuracies of simulated workers, and what policies differ by from the first."""
    columns: dict[str, list[str]] = {}
    for name in ("simulation", "simulation_noisy"):
        reached: dict[str, list[float]] = {}
        for run in results(name)["runs"]:
            reached.setdefault(run["averaging"], []).append(run["accuracies"][-1][1])
        control = next(iter(reached.values()))
        for policy, own in reached.items():
            columns.setdefault(f"`{policy}`", []).extend([_percent(own), _difference(own, control)])
    head = ["images dealt out evenly", "minus uniform", "random labels on 3 of 8 workers", "minus uniform"]
    return markdown(head, [[name, *entries] for name, entries in columns.items()])


def _percent(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}%"


def _difference(values: list[float], control: list[float]) -> str:
    """What one differs by from the other, in points: mean ± half of its 95% interval, paired by seed."""
    if values == control:
        return ""
    middle, half = paired(values, control)
    return f"{signed(100 * middle)} ± {100 * half:.1f}"
