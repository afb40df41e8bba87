"""What follows from the runs of `experiments.flatness`, in numbers, and its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean, geometric_mean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.comparison import family, p_shown
from experiments.convergence_arms import ARMS
from experiments.convergence_report import CONTROLLED, gaps, spread, turned

Found = Mapping[str, Any]
MEASURES = ("norm", "largest", "trace")  # the Frobenius norm and the largest eigenvalue as logarithms


def summary_of(found: Found, before: Found, sizes: Sequence[int]) -> dict[str, Any]:
    """By name: what each arm has, the differences of each pair, and of each arm and its control.

    Args:
        found: of `experiments.flatness`; before: of `experiments.convergence`.
        sizes: numbers of workers.
    """
    summary: dict[str, Any] = {}
    for size in sizes:
        arms = {name: found[f"{name}, {size} workers"] for name in ARMS}
        level = at_equal_loss(arms)
        for name, rows in arms.items():
            summary[f"{name}, {size} workers"] = {
                "norm": round(geometric_mean([row["norm"] for row in rows]), 4),
                **spread("trace", [row["trace"] for row in rows]),
                "largest": round(geometric_mean([max(row["largest"], 1e-12) for row in rows]), 4),
                "loss": round(fmean(row["loss"] for row in rows), 4), "norm_at_equal_loss": round(level[name], 4),
            }  # fmt: skip
        for measure in MEASURES:
            values = {name: values_of(rows, measure) for name, rows in arms.items()}
            pairs = {f"{a} − {b}": (values[a], values[b]) for a, b in combinations(ARMS, 2)}
            controls = {
                f"{name} − its control": (values[name], values_of(found[f"control of {name}, {size} workers"], measure))
                for name in CONTROLLED
            }
            summary |= {f"{size} workers, {measure}: {pair}": row for pair, row in family(pairs).items()}
            summary |= {f"{size} workers, {measure}, control: {pair}": row for pair, row in family(controls).items()}
        summary[f"{size} workers: Spearman's correlation of norm and gap"] = correlation(arms, before, size)
    return summary


def values_of(rows: Sequence[Mapping[str, float]], measure: str) -> list[float]:
    """Logarithms, but of the trace, which may be negative."""
    return [row[measure] if measure == "trace" else math.log(max(row[measure], 1e-12)) for row in rows]


def at_equal_loss(arms: Found) -> dict[str, float]:
    """The Frobenius norm of each arm where its training loss were the mean of all.

    By the slope of the norm's logarithm on the logarithm of the loss, from deviations from the means of the arms.
    """
    logs = {name: np.log([[row["norm"], row["loss"]] for row in rows]) for name, rows in arms.items()}
    within = np.concatenate([each - each.mean(axis=0) for each in logs.values()])
    slope = float(within[:, 0] @ within[:, 1] / max(within[:, 1] @ within[:, 1], 1e-30))
    middle = float(np.mean([each[:, 1].mean() for each in logs.values()]))
    return {
        name: math.exp(float(each[:, 0].mean()) - slope * (float(each[:, 1].mean()) - middle))
        for name, each in logs.items()
    }


def correlation(arms: Found, before: Found, size: int) -> dict[str, float]:
    """Over all models, and over those of each arm (the mean of the arms' correlations)."""
    norms = {name: [row["norm"] for row in rows] for name, rows in arms.items()}
    wide = {name: gaps(before[f"{name}, {size} workers"]) for name in arms}
    pooled = spearmanr(np.ravel([*norms.values()]), np.ravel([*wide.values()])).statistic
    inner = [spearmanr(norms[name], wide[name]).statistic for name in arms]
    return {"pooled": round(float(pooled), 3), "within arms": round(float(np.nanmean(inner)), 3)}


def arms_table(summary: Found, size: int) -> str:
    """What each arm has."""
    lines = [
        "| arm | Frobenius norm | at equal train loss | trace | largest eigenvalue | train loss |", "|---" * 6 + "|",
    ]  # fmt: skip
    for name in ARMS:
        row = summary[f"{name}, {size} workers"]
        lines.append(
            f"| {name} | {row['norm']:.2f} | {row['norm_at_equal_loss']:.2f} | {row['trace']:.1f} ± "
            f"{row['trace_sd']:.1f} | {row['largest']:.2f} | {row['loss']:.3f} |"
        )
    return "\n".join(lines)


def ratio(row: Mapping[str, float]) -> str:
    """A difference of logarithms as a ratio, with its interval; in bold if Holm's p is below .05."""
    mean, low, high = (math.exp(row[name]) for name in ("mean", "low", "high"))
    text = f"{mean:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if row["holm"] < 0.05 else text


def beside(summary: Found, size: int, a: str, b: str) -> dict[str, float]:
    """Of the logarithms of the norm: a − b, in whichever order it is kept."""
    row: dict[str, float] | None = summary.get(f"{size} workers, norm: {a} − {b}")
    return row if row is not None else turned(summary[f"{size} workers, norm: {b} − {a}"])


def ratios_table(summary: Found, sizes: Sequence[int]) -> str:
    """The Frobenius norm of the forms of GRAWA over those of the others and of their controls, and p."""
    forms = ["MGRAWA", "LGRAWA", "MGRAWA, local", "LGRAWA, local"]
    others = ["DP+SGD", "DP+SAM", "EASGD", "LSGD", "uniform"]
    lines = [f"| workers: form | {' | '.join(f'÷ {name}' for name in others)} | ÷ its control |", "|---" * 7 + "|"]
    for size in sizes:
        for form in forms:
            rows = [beside(summary, size, form, other) for other in others]
            rows.append(summary[f"{size} workers, norm, control: {form} − its control"])
            cells = " | ".join(f"{ratio(row)} ({p_shown(row['p'])}, {p_shown(row['holm'])})" for row in rows)
            lines.append(f"| {size}: {form} | {cells} |")
    return "\n".join(lines)
