"""The pictures of `experiments.averaging_frequency`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import common
from experiments.averaging_frequency_report import LOSSES, STARTS, periods_of, runs_of, weighted_runs


def plot(found: Mapping[str, Any], folder: Path) -> None:
    """Write averaging_frequency.png (parts 1 and 4) and averaging_weights.png (parts 2 and 3)."""
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    for axes, loss in zip(upper, LOSSES, strict=True):
        _learning(axes, found, loss)
    _at_the_end(lower[0], found)
    for axes, b in zip(lower[1:], (0.0, 3.0), strict=True):
        _quadratic(axes, [run for name, run in found.items() if name.startswith("quadratic") and run["b"] == b], b)
    figure.savefig(folder / "averaging_frequency.png", dpi=110)
    figure = Figure(figsize=(14, 7.6), layout="constrained")
    upper, lower = figure.subplots(2, 3)
    for axes, loss in zip(upper, LOSSES, strict=True):
        _starts(axes, found, loss)
    upper[-1].legend(fontsize=8, loc="lower left")  # there is room in this panel alone
    for axes, loss in zip(lower, LOSSES, strict=True):
        _weights(axes, found, loss)
    figure.savefig(folder / "averaging_weights.png", dpi=110)


def _learning(axes: Any, found: Mapping[str, Any], loss: str) -> None:
    for number, period in enumerate(periods_of(found, "frequency")):
        runs = runs_of(found, f"frequency, {loss}, period {period}, shared start, common 0")
        steps = [step for step, _ in runs[0]["accuracies"]]
        mean = np.mean([[100 * accuracy for _, accuracy in run["accuracies"]] for run in runs], axis=0)
        # The curves lie on each other: later ones are thinner, so that all can be seen.
        axes.plot(steps, mean, color=f"C{number}", linewidth=6 - 1.2 * number, label=f"{period}")
    axes.set(xscale="log", xlabel="local steps", ylabel="test accuracy of the mean (%)", ylim=(0, 100))
    axes.set_title(f"{loss}: by period", loc="left", fontsize=11)
    axes.legend(title="period", fontsize=8, title_fontsize=8)
    axes.grid(alpha=0.25)


def _at_the_end(axes: Any, found: Mapping[str, Any]) -> None:
    periods = periods_of(found, "frequency")
    for number, loss in enumerate(LOSSES):
        ends = [
            common.interval([100 * run["accuracies"][-1][1] for run in
                             runs_of(found, f"frequency, {loss}, period {period}, shared start, common 0")])
            for period in periods
        ]  # fmt: skip
        places = np.array(periods) * 1.12 ** (number - 1)
        axes.errorbar(places, *zip(*ends, strict=True), fmt="o-", capsize=3, linewidth=1, label=loss)
    axes.set(xscale="log", xlabel="period", ylabel="test accuracy (%), 95%")
    axes.set_title("at the end, by period", loc="left", fontsize=11)
    axes.margins(y=0.25)
    axes.legend(fontsize=8, loc="upper right", ncols=3)
    axes.grid(alpha=0.25)


def _quadratic(axes: Any, rows: list[dict[str, float]], b: float) -> None:
    periods = [row["period"] for row in rows]
    axes.plot(periods, [row["closed_form"] for row in rows], "-", color="0.5", label="closed form")
    axes.errorbar(periods, [row["sampled"] for row in rows], yerr=[2 * row["standard_error"] for row in rows], fmt="o",
                  capsize=3, label="sampled, ± 2 standard errors")  # fmt: skip
    axes.set(xscale="log", xlabel="period", ylabel="variance of the mean after 64 steps")
    axes.set_ylim(0, 1.3 * max(row["sampled"] for row in rows))
    axes.set_xticks(periods, [f"{period}" for period in periods])
    axes.minorticks_off()
    noise = "the same everywhere (b = 0)" if b == 0 else f"growing with |x| (b = {b:g})"
    axes.set_title(f"noisy quadratic, noise {noise}", loc="left", fontsize=11)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)


def _starts(axes: Any, found: Mapping[str, Any], loss: str) -> None:
    periods = periods_of(found, "divergence")
    ticks = [f"{start} start\nperiod {period}" for period in periods for start in STARTS]
    for offset, (share, label) in zip(
        (-0.15, 0.15), (("0", "disjoint shards"), ("0.5", "half in common")), strict=True
    ):
        for kind, marker in (("mean", "o"), ("own", "x")):
            values = [
                common.interval([100 * run[kind] for run in
                                 runs_of(found, f"divergence, {loss}, period {period}, {start} start, common {share}")])
                for period in periods for start in STARTS
            ]  # fmt: skip
            color = "C0" if share == "0" else "C1"
            text = f"{'mean of workers' if kind == 'mean' else 'a worker'}, {label}"
            axes.errorbar(np.arange(4) + offset + 0.06 * (kind == "own"), *zip(*values, strict=True), fmt=marker,
                          color=color, capsize=2.5, label=text)  # fmt: skip
    axes.set_xticks(range(4), ticks, fontsize=8)
    axes.set(ylabel="test accuracy (%), 95%")
    axes.set_title(f"{loss}: start and common examples", loc="left", fontsize=11)
    axes.grid(axis="y", alpha=0.25)


def _weights(axes: Any, found: Mapping[str, Any], loss: str) -> None:
    for number, start in enumerate(STARTS):
        rows = [run["weights"] for run in weighted_runs(found, loss, start)]
        ranked = np.sort(np.array(rows), axis=1)[:, ::-1]
        places = np.arange(ranked.shape[1]) + 1 + 0.24 * (number - 0.5)
        axes.plot(np.broadcast_to(places, ranked.shape).T, ranked.T, "o", color=f"C{number}", markersize=4, alpha=0.5)
        axes.plot(places, ranked.mean(axis=0), "_", color=f"C{number}", markersize=20, label=f"{start} start")
    axes.axhline(1 / ranked.shape[1], color="0.6", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(1, ranked.shape[1] + 1), ["largest", "second", "third", "least"][: ranked.shape[1]])
    axes.set(ylim=(-0.03, 1.03), ylabel="best weight")
    axes.set_title(f"{loss}: best weights (bar: their mean)", loc="left", fontsize=11)
    axes.legend(fontsize=8)
