"""A family of paired comparisons: means, intervals, and p before and after Holm's correction over the family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.statistics import bootstrap, holm, sign_flips

Values = Sequence[float]


def family(pairs: Mapping[str, tuple[Values, Values]]) -> dict[str, dict[str, float]]:
    """Compare each pair, one value a seed.

    Args:
        pairs: name → values, and those that they are compared with, of the same seeds.

    Returns:
        Name → the mean difference, the "low" and "high" ends of its 95% interval (bootstrap), "p" (sign flips), and
        "holm": p corrected for all pairs.
    """
    found = {}
    for name, (values, others) in pairs.items():
        differences = [value - other for value, other in zip(values, others, strict=True)]
        low, high = bootstrap(differences)
        found[name] = {"mean": fmean(differences), "low": low, "high": high, "p": sign_flips(differences)}
    corrected = holm([row["p"] for row in found.values()])
    return {name: _rounded({**row, "holm": p}) for (name, row), p in zip(found.items(), corrected, strict=True)}


def shown(row: Mapping[str, Any], digits: int = 1) -> str:
    """Mean and interval; in bold if Holm's p is below .05."""
    mean, low, high = (signed(row[name], digits) for name in ("mean", "low", "high"))
    text = f"{mean} [{low}, {high}]"
    return f"**{text}**" if row["holm"] < 0.05 else text


def signed(value: float, digits: int = 1) -> str:
    """With its sign, and a minus as typographers have it."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def p_shown(p: float) -> str:
    """Three digits, or that it is smaller."""
    return "< .001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"


def _rounded(row: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in row.items()}
