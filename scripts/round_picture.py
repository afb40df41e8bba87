#!/usr/bin/env python3
"""Draw docs/round.svg: one round of three workers in a plane, with the formulas of docs/design.md below.

The same program always writes the same bytes. Needs matplotlib and numpy (the extra `examples`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

TARGET = Path(__file__).resolve().parent.parent / "docs" / "round.svg"
COLORS = ("#0072b2", "#d55e00", "#009e73")
START = np.array([0.0, 0.0])
ENDS = np.array([[2.2, 2.0], [3.4, 0.1], [1.5, -2.1]])
NORMS = np.array([1.0, 2.0, 3.0])
STEPS, PULL = 8, 0.5
PANELS = (
    ("1. Each worker trains on its own\nfor τ steps, without communication",
     r"$s_{m,l} = \Vert g_{m,l} \Vert$, worker $m$, layer $l$", "τ = period"),
    ("2. All average their models, with\nmore weight where gradients are small",
     r"$\beta_{m,l} = \frac{1/s_{m,l}}{\sum_j 1/s_{j,l}} \qquad c_l = \sum_m \beta_{m,l}\, x_{m,l}$", "c = the centre"),
    ("3. Each worker is pulled\ntoward the centre, and trains on",
     r"$x_m \leftarrow (1-\lambda)\, x_m + \lambda\, c$", "λ = pull"),
)  # fmt: skip


def trajectories() -> list[np.ndarray]:
    """The way of each worker from the common start, [steps + 1, 2]: a line, with noise that ends where it began."""
    generator = np.random.default_rng(3)
    share = np.linspace(0, 1, STEPS + 1)[:, None]
    ways = []
    for end in ENDS:
        noise = generator.normal(scale=0.25, size=(STEPS + 1, 2)) * np.sqrt(share * (1 - share)) * 2
        ways.append(START + share * (end - START) + noise)
    return ways


def draw(axes: list[Any]) -> None:
    """The three panels."""
    weights = (1 / NORMS) / (1 / NORMS).sum()
    center = weights @ ENDS
    for number, (panel, (title, formula, name)) in enumerate(zip(axes, PANELS, strict=True)):
        panel.set(xlim=(-0.9, 4.3), ylim=(-3.1, 2.9), aspect="equal", xticks=[], yticks=[])
        for side in panel.spines.values():
            side.set_color("0.8")
        panel.set_title(title, fontsize=11, loc="left")
        panel.text(0.5, -0.12, formula, fontsize=12.5, transform=panel.transAxes, ha="center", va="center")
        panel.text(0.5, -0.26, name, fontsize=10, color="0.4", transform=panel.transAxes, ha="center", va="center")
        for way, end, color, weight in zip(trajectories(), ENDS, COLORS, weights, strict=True):
            panel.plot(*way.T, color=color, marker=".", markersize=5, linewidth=1.2, alpha=1 if number == 0 else 0.25)
            if number == 0:
                panel.plot(*end, "o", color=color, markersize=9)
            elif number == 1:
                panel.plot(*end, "o", color=color, markersize=34 * np.sqrt(weight), alpha=0.85)
                panel.annotate(
                    "", center, end, arrowprops={"arrowstyle": "-", "color": color, "linestyle": ":", "lw": 1.5}
                )
                offset = (0, 22) if end[1] > 1 else (0, -28)
                panel.annotate(
                    rf"$\beta$ = {weight:.2f}", end, offset, textcoords="offset points", ha="center", fontsize=10
                )
            else:
                panel.plot(*end, "o", color=color, markersize=9, alpha=0.25)
                new = (1 - PULL) * end + PULL * center
                panel.annotate("", new, end, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8})
                panel.plot(*new, "o", color=color, markersize=9)
        panel.plot(*START, "s", color="0.3", markersize=7)
        panel.annotate("start", START, (0, -16), textcoords="offset points", ha="center", fontsize=9, color="0.3")
        if number:
            panel.plot(*center, "*", color="black", markersize=17)
            panel.annotate("c", center, (12, -6), textcoords="offset points", fontsize=12, style="italic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET, help="a .svg or .png file (default: docs/round.svg)")
    out = parser.parse_args().out
    plt.rcParams.update({"svg.hashsalt": "grawa_hvd", "mathtext.fontset": "dejavusans"})
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6))
    figure.subplots_adjust(left=0.02, right=0.98, top=0.88, bottom=0.22, wspace=0.08)
    draw(list(axes))
    metadata = {"Date": None} if out.suffix == ".svg" else None
    figure.savefig(out, dpi=110, facecolor="white", metadata=metadata)


if __name__ == "__main__":
    main()
