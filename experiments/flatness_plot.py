"""The picture of `experiments.flatness`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from experiments.convergence_arms import ARMS
from experiments.convergence_plot import COLORS
from experiments.convergence_report import errors, gaps


def plot(found: Mapping[str, Any], before: Mapping[str, Any], sizes: Sequence[int], file: Path) -> None:
    """A row for each number of workers: the norm over train loss, and gap and test error over the norm."""
    figure = Figure(figsize=(14, 4.4 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), 3, squeeze=False)
    for row, size in zip(panels, sizes, strict=True):
        for color, name in zip(COLORS, ARMS, strict=True):
            here, runs = found[f"{name}, {size} workers"], before[f"{name}, {size} workers"]
            norms = [each["norm"] for each in here]
            looks: dict[str, Any] = {"color": color, "s": 14, "marker": "x" if name.startswith("DP+") else "o"}
            row[0].scatter([each["loss"] for each in here], norms, label=name, **looks)
            row[1].scatter(norms, gaps(runs), **looks)
            row[2].scatter(norms, errors(runs), **looks)
        row[0].set(
            xlabel="training loss", ylabel="Frobenius norm of the Hessian", title=f"{size} workers", yscale="log"
        )
        row[1].set(xlabel="Frobenius norm of the Hessian", xscale="log", title="generalisation gap, points")
        row[2].set(xlabel="Frobenius norm of the Hessian", xscale="log", title="test error, %")
        for axis in (row[0].yaxis, row[1].xaxis, row[2].xaxis):
            axis.set_major_locator(FixedLocator(range(3, 11)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        for axes in row:
            axes.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(file, dpi=110)
