"""The pictures of `experiments.per_step`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.per_step_report import MARGIN

LOOKS = {("uniform", 0.5): "o", ("uniform", 1.0): "s", ("lgrawa", 0.5): "^", ("lgrawa", 1.0): "D"}


def plot(summary: Mapping[str, Any], arms: Sequence[Any], workers: Sequence[int], steps: int, file: Path) -> None:
    """A row for each number of workers: differences from gradient averaging, and accuracy over steps."""
    figure = Figure(figsize=(12, 4.6 * len(workers)), layout="constrained")
    panels = figure.subplots(len(workers), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), size in zip(panels, workers, strict=True):
        _differences(left, summary, arms, size)
        _curves(right, summary, arms, size, steps)
    panels[0][0].legend(fontsize=8, loc="lower left")
    figure.savefig(file, dpi=110)


def _differences(axes: Any, summary: Mapping[str, Any], arms: Sequence[Any], size: int) -> None:
    groups = list(dict.fromkeys((arm.period, arm.outer) for arm in arms))
    for number, (look, marker) in enumerate(LOOKS.items()):
        mine = [arm for arm in arms if (arm.policy, arm.pull) == look]
        rows = [summary[f"{arm}, {size} workers − gradients"] for arm in mine]
        places = [groups.index((arm.period, arm.outer)) + 0.17 * (number - 1.5) for arm in mine]
        means = np.array([row["mean"] for row in rows])
        sides = [means - [row["low"] for row in rows], np.array([row["high"] for row in rows]) - means]
        label = f"{look[0].replace('lgrawa', 'LGRAWA')}, λ = {look[1]:g}"
        axes.errorbar(places, means, sides, fmt=marker, color=f"C{number}", capsize=2, markersize=4, label=label)
    axes.axhline(0, color="0.4", linewidth=0.9)
    axes.axhline(-MARGIN, color="0.4", linewidth=0.9, linestyle=":")
    titles = [f"τ = {period}\n{outer}" for period, outer in groups]
    axes.set_xticks(range(len(groups)), titles, fontsize=8)
    axes.set_title(f"{size} workers: accuracy minus gradient averaging's, points", loc="left", fontsize=11)
    axes.grid(axis="y", alpha=0.3)


def _curves(axes: Any, summary: Mapping[str, Any], arms: Sequence[Any], size: int, steps: int) -> None:
    shown = {"gradients": ("gradient averaging", "0.2", "-")}
    for arm in arms:
        if (arm.policy, arm.pull) == ("uniform", 1.0) and arm.outer != "Nesterov":
            dashed = arm.outer != "none"
            color = f"C{sorted({each.period for each in arms}).index(arm.period)}"
            shown[str(arm)] = (
                f"τ = {arm.period}, {arm.outer}" if dashed else f"τ = {arm.period}",
                color,
                "--" if dashed else "-",
            )
    for name, (label, color, style) in shown.items():
        curve = summary[f"{name}, {size} workers"]["curve"]
        axes.plot(np.linspace(steps / len(curve), steps, len(curve)), curve, style, color=color, label=label)
    axes.set(xlabel="steps", ylim=(80, 99))
    axes.set_title("uniform, λ = 1: accuracy of the mean, %", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
