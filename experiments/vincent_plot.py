"""Pictures of the Vincent experiment: paths over contours, and how often each policy ends flattest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

TITLES = {"easgd": "EASGD", "lsgd": "LSGD", "uniform": "uniform (control)", "grawa": "GRAWA", "mgrawa": "MGRAWA",
          "lgrawa": "LGRAWA"}  # fmt: skip


def plot(found: Mapping[str, Any], summary: Mapping[str, Any], folder: Path) -> None:
    """Write vincent.png and vincent_starts.png.

    Args:
        found: the runs by name.
        summary: what was concluded of them, by "policy, noise n".
        folder: where to.
    """
    _paths(found, folder / "vincent.png")
    _starts(summary, folder / "vincent_starts.png")


def _paths(found: Mapping[str, Any], file: Path) -> None:
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    line = np.linspace(0.25, 10, 400)
    surface = -(np.sin(10 * np.log(line))[:, None] + np.sin(10 * np.log(line))) / 2
    panels = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for axes, (averaging, title) in zip(panels, TITLES.items(), strict=True):
        result = found[f"{averaging}, the box, noise 0"]
        shown = axes.contourf(line, line, surface, levels=12, cmap="Greys_r", alpha=0.55)
        for number, path in enumerate(result["paths"]):
            xs, ys = np.array(path).T
            axes.plot(xs, ys, ".-", color=f"C{number}", linewidth=1.2, markersize=3, clip_on=False, zorder=3)
            axes.plot(xs[0], ys[0], "o", color=f"C{number}", markersize=8, clip_on=False, zorder=3)
        axes.plot(*result["mean"], "*", color="crimson", markeredgecolor="white", markersize=17, zorder=4)
        axes.set_title(f"{title}: ‖∇²f‖ = {result['hessian_norm']:.3g} at the end", loc="left")
        axes.set_aspect("equal")
    figure.colorbar(shown, ax=figure.axes[:6], shrink=0.6, label="f")
    figure.suptitle("Vincent function: 4 workers from the corners (dots) to the mean of the workers (star)",
                    x=0.01, ha="left")  # fmt: skip
    figure.savefig(file, dpi=110)


def _starts(summary: Mapping[str, Any], file: Path) -> None:
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    for offset, (noise, label) in zip((-0.12, 0.12), (("0", "exact gradients"), ("1", "gradient noise")), strict=True):
        shares = np.array([summary[f"{arm}, noise {noise}"]["flattest"] for arm in TITLES]) * 100
        middle, low, high = shares.T
        places = np.arange(len(TITLES)) + offset
        axes.errorbar(places, middle, yerr=[middle - low, high - middle], fmt="o", capsize=3, label=label)
    axes.set_xticks(range(len(TITLES)), TITLES.values())
    axes.set(ylim=(-3, 103), ylabel="starts (%)")
    axes.set_title("How often the mean of the workers ends in the flattest valley of the six, ties counted (95%)",
                   loc="left", fontsize=10)  # fmt: skip
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
