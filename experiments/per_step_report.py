"""What follows from the runs of `experiments.per_step`, in numbers, and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from experiments.comparison import family, p_shown, shown

MARGIN = 0.5  # points: a loss smaller than this is keeping pace
FACTORS: dict[str, Callable[[Any], Any]] = {
    "pull 1 − pull .5": lambda arm: arm._replace(pull=1.0) if arm.pull != 1 else None,
    "outer momentum .5 − none": lambda arm: arm._replace(outer="momentum .5") if arm.outer == "none" else None,
    "outer Nesterov − none": lambda arm: arm._replace(outer="Nesterov") if arm.outer == "none" else None,
    "LGRAWA − uniform": lambda arm: arm._replace(policy="lgrawa") if arm.policy == "uniform" else None,
}


def summary_of(found: Mapping[str, Any], arms: Sequence[Any], workers: Sequence[int]) -> dict[str, Any]:
    """By name: percent of accuracy, differences in points with what the protocol says of them, and effects."""
    summary: dict[str, Any] = {}
    for size in workers:
        points = {arm: _points(found, arm, size, "mean") for arm in ("gradients", *arms)}
        owns = {arm: _points(found, arm, size, "own") for arm in arms}
        for arm, values in points.items():
            curves = [run["curve"] for run in found[f"{arm}, {size} workers"]]
            summary[f"{arm}, {size} workers"] = {
                "mean": round(fmean(values), 3), "sd": round(_spread(values), 3),
                "own": round(fmean(owns[arm]), 3) if arm in owns else None,
                "curve": [round(100 * float(each), 3) for each in np.mean(curves, axis=0)],
            }  # fmt: skip
        beside = family({str(arm): (points[arm], points["gradients"]) for arm in arms})
        for name, row in beside.items():
            summary[f"{name}, {size} workers − gradients"] = {**row, "pace": pace(row)}
        summary[f"{size} workers: arms by pace"] = dict(Counter(pace(row) for row in beside.values()))
        summary |= {f"{size} workers: {name}": row for name, row in effects(points, owns, arms).items()}
    return summary


def _points(found: Mapping[str, Any], arm: Any, size: int, what: str) -> list[float]:
    return [100 * run[what] for run in found[f"{arm}, {size} workers"]]


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def pace(row: Mapping[str, float]) -> str:
    """As the protocol has it."""
    if row["holm"] < 0.05 and row["mean"] > 0:
        return "ahead"
    if row["low"] >= -MARGIN:
        return "keeps pace"
    return "lags" if row["high"] < 0 and row["mean"] <= -MARGIN else "undecided"


def effects(
    points: Mapping[Any, list[float]], owns: Mapping[Any, list[float]], arms: Sequence[Any]
) -> dict[str, dict[str, float]]:
    """Of each factor, by period: the mean over the arms that differ in it alone, paired by seed."""
    pairs = {}
    for factor, other in FACTORS.items():
        for period in sorted({arm.period for arm in arms}):
            matched = [(other(arm), arm) for arm in arms if arm.period == period and other(arm) in points]
            sides = [[points[pair[side]] for pair in matched] for side in (0, 1)]
            pairs[f"{factor}, period {period}"] = (_mean(sides[0]), _mean(sides[1]))
    for period in sorted({arm.period for arm in arms}):
        mine = [arm for arm in arms if arm.period == period]
        pairs[f"own model − mean, period {period}"] = (
            _mean([owns[arm] for arm in mine]), _mean([points[arm] for arm in mine]),
        )  # fmt: skip
    return family(pairs)


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    """Over arms, for each seed."""
    return [fmean(column) for column in zip(*rows, strict=True)]


def arms_table(summary: Mapping[str, Any], size: int) -> str:
    """All arms beside gradient averaging."""
    first = summary[f"gradients, {size} workers"]
    lines = [
        "| arm | lr | mean of the workers, % | own model, % | minus gradient averaging | p | Holm | |",
        "|---|---|---|---|---|---|---|---|",
        f"| gradient averaging | {summary[f'gradients, {size} workers: lr']:g} | {first['mean']:.1f} ± "
        f"{first['sd']:.1f} | | | | | |",
    ]
    for name, row in summary.items():
        if not name.endswith(f", {size} workers − gradients"):
            continue
        arm = name.removesuffix(" − gradients")
        reached, title = summary[arm], arm.removesuffix(f", {size} workers").replace("lgrawa", "LGRAWA")
        lines.append(
            f"| {title} | {summary[f'{arm}: lr']:g} | {reached['mean']:.1f} ± {reached['sd']:.1f} | "
            f"{reached['own']:.1f} | {shown(row)} | {p_shown(row['p'])} | {p_shown(row['holm'])} | {row['pace']} |"
        )
    return "\n".join(lines)


def effects_table(summary: Mapping[str, Any], sizes: Sequence[int]) -> str:
    """What each factor does, by period."""
    lines = [f"| | {' | '.join(f'{size} workers | p, Holm' for size in sizes)} |", "|---" * (1 + 2 * len(sizes)) + "|"]
    prefix = f"{sizes[0]} workers: "
    for name in (name.removeprefix(prefix) for name in summary if name.startswith(prefix) and ", period " in name):
        rows = [summary[f"{size} workers: {name}"] for size in sizes]
        cells = " | ".join(f"{shown(row)} | {p_shown(row['p'])}, {p_shown(row['holm'])}" for row in rows)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)
