"""The picture of the topology experiment: consensus over rounds, and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

SHOWN = ("ring", "lattice", "torus", "hypercube", "exponential", "found, seed 0")


def plot(mixed: Mapping[str, Any], compared: Mapping[str, Any], arms: Sequence[str], file: Path) -> None:
    """Two panels of consensus, one of the accuracies of the arms.

    Args:
        mixed: "M workers, graph, weights" → degree and errors over rounds.
        compared: "arm: accuracy of kind" → mean and half an interval, in %.
        arms: in the order of the picture.
        file: where to.
    """
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    *left, right = figure.subplots(1, 3)
    for axes, workers in zip(left, (16, 32), strict=True):
        _consensus(axes, mixed, workers)
    for offset, kind, label in ((-0.13, "own", "workers' own models"), (0.13, "mean", "mean of the workers")):
        values = np.array([compared[f"{arm}: accuracy of {kind}"] for arm in arms])
        places = np.arange(len(arms))[::-1] - offset
        right.errorbar(values[:, 0], places, xerr=values[:, 1], fmt="o", capsize=2.5, markersize=5, label=label)
    right.set_yticks(range(len(arms))[::-1], arms)
    right.set(xlabel="test accuracy (%), 95% over seeds")
    right.set_title("Training: 16 workers, skewed shards", loc="left", fontsize=11)
    right.grid(axis="x", alpha=0.3)
    right.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(file, dpi=110)


def _consensus(axes: Any, mixed: Mapping[str, Any], workers: int) -> None:
    for number, name in enumerate(SHOWN):
        for weights, style in (("metropolis", "-"), ("laplacian", "--")):
            row = mixed[f"{workers} workers, {name}, {weights}"]
            label = f"{name.split(',')[0]}, degree {row['degree']:.3g}" if style == "-" else None
            width = 4 if name == "torus" else 1.7  # of 16 workers it is the hypercube, whose line lies on it
            axes.plot(row["errors"], style, color=f"C{number}", linewidth=width, alpha=0.9, label=label)
    axes.set(yscale="log", xlim=(0, 40), ylim=(1e-3, 1.2), xlabel="rounds of mixing alone")
    axes.set_ylabel("distance from the mean, as a share")
    axes.axhline(0.01, color="0.6", linewidth=0.8)
    axes.set_title(f"{workers} workers: Metropolis solid, Laplacian dashed", loc="left", fontsize=11)
    axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    axes.grid(alpha=0.2)
