"""The picture of `experiments.convergence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.convergence_arms import ARMS

COLORS = [f"C{number}" for number in range(10)] + ["0.2", "gold"]


def plot(summary: Mapping[str, Any], workers: Sequence[int], file: Path) -> None:
    """A row for each number of workers: error over samples, over modelled seconds, and at the end."""
    figure = Figure(figsize=(15, 4.6 * len(workers)), layout="constrained")
    panels = figure.subplots(len(workers), 3, squeeze=False)
    for (left, middle, right), size in zip(panels, workers, strict=True):
        for color, name in zip(COLORS, ARMS, strict=True):
            row = summary[f"{name}, {size} workers"]
            parts = np.arange(1, len(row["curve"]) + 1) / len(row["curve"])
            style = "--" if name.startswith("DP+") else "-"
            left.plot(row["epochs"] * parts, row["curve"], style, color=color, linewidth=1.2, label=name)
            middle.plot(row["seconds"] * parts, row["curve"], style, color=color, linewidth=1.2)
        left.set(xlabel="epochs", title=f"{size} workers: test error of the mean, %")
        middle.set(xlabel="seconds, modelled", xscale="log", title="the same over modelled time")
        for axes in (left, middle):
            axes.set_yscale("log")
            axes.set_yticks([4, 5, 6, 8, 10, 15, 20], ["4", "5", "6", "8", "10", "15", "20"])
            axes.set_ylim(top=25)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        _ends(right, summary, size)
    panels[0][0].legend(fontsize=7, ncols=2)
    figure.savefig(file, dpi=110)


def _ends(axes: Any, summary: Mapping[str, Any], size: int) -> None:
    rows = [summary[f"{name}, {size} workers"] for name in ARMS]
    places = np.arange(len(rows))
    for what, marker in (("error", "o"), ("gap", "s")):
        means, spreads = ([row[key] for row in rows] for key in (what, f"{what}_sd"))
        label = "test error, %" if what == "error" else "generalisation gap, points"
        axes.errorbar(means, places, xerr=spreads, fmt=marker, capsize=2, markersize=4, label=label)
    axes.set_yticks(places, list(ARMS), fontsize=8)
    axes.invert_yaxis()
    axes.set_title("at the end, mean ± sd")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2)
