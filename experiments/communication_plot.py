"""The picture of `experiments.communication`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.convergence_arms import ARMS


def plot(summary: Mapping[str, Any], sizes: Sequence[int], file: Path) -> None:
    """Seconds of communication by arm; the share of computing by period, on the cluster and on GPUs."""
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _seconds(left, summary, sizes)
    cells = {key.removeprefix("share computing, "): row for key, row in summary.items() if key.startswith("share")}
    for number, (rate, row) in enumerate((rate, row) for rate, row in cells.items() if "measured" in row):
        middle.plot([*map(int, row["modelled"])], [*row["modelled"].values()], color=f"C{number}", linewidth=1)
        title = "unshaped" if rate == "none" else rate
        middle.plot([*map(int, row["measured"])], [*row["measured"].values()], "o", color=f"C{number}", label=title)
    middle.set_title("12 ranks, 3 hosts: points measured, lines modelled", fontsize=11)
    for rate, row in cells.items():
        if "measured" not in row:
            right.plot([*map(int, row)], [*row.values()], "-", label=rate.split(", ")[-1])
    right.set_title("GPUs, 25.6 M numbers, 50 ms a step: modelled", fontsize=11)
    for axes in (middle, right):
        axes.set_xscale("log", base=2)
        axes.set(xlabel="period", ylabel="share of the time that is computing", ylim=(0, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(file, dpi=110)


def _seconds(axes: Any, summary: Mapping[str, Any], sizes: Sequence[int]) -> None:
    for number, size in enumerate(sizes):
        rows = [summary[f"{name}, {size} workers, best"] for name in ARMS]
        places = np.arange(len(rows)) + 0.35 * (number - (len(sizes) - 1) / 2)
        waits = [row["communication"] for row in rows]
        axes.barh(places, waits, 0.32, color=f"C{number}", label=f"{size} workers")
        axes.barh(places, [row["passes"] for row in rows], 0.32, left=waits, color=f"C{number}", alpha=0.4)
    axes.set_yticks(range(len(ARMS)), list(ARMS), fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=0.5)
    axes.set(xlabel="seconds of a run, modelled; pale: fresh norms")
    axes.set_title("communication at each one's best setting", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
