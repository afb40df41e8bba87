"""The tables of `experiments.communication`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.convergence_arms import ARMS, PERIODS

Found = Mapping[str, Any]
TITLES = {"none": "unshaped", "1gbit": "1 Gbit/s", "100mbit": "100 Mbit/s", "10gbit": "10 Gbit/s",
          "25gbit": "25 Gbit/s", "100gbit": "100 Gbit/s"}  # fmt: skip


def arms_table(summary: Found, sizes: Sequence[int]) -> str:
    """Rounds and modelled seconds, at each one's best setting, and all with period 16 and batches of 16."""
    head = " | ".join(f"{size} workers: period | rounds | s of communication | s a round | all equal" for size in sizes)
    lines = [f"| | {head} |", "|---" * (1 + 5 * len(sizes)) + "|"]
    for name in ARMS:
        cells = []
        for size in sizes:
            row, equal = (summary[f"{name}, {size} workers, {title}"] for title in ("best", "equal"))
            cells += [f"{row['period']:g}", f"{row['rounds']}", seconds(row), f"{row['each']:.3f}", seconds(equal)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds(row: Mapping[str, float]) -> str:
    """Waiting for others, and the passes of fresh norms."""
    return f"{row['communication']:.1f}" + (f" + {row['passes']:.1f}" if row["passes"] else "")


def periods_table(summary: Found, sizes: Sequence[int]) -> str:
    """Validation errors by period, from the summary of `experiments.convergence`."""
    head = " | ".join(f"{size} workers, τ = {period}" for size in sizes for period in PERIODS)
    lines = [f"| | {head} |", "|---" * (1 + len(sizes) * len(PERIODS)) + "|"]
    for name, arm in ARMS.items():
        if arm.averages == "models":
            rows = [summary[f"{size} workers, by period: {name}"] for size in sizes]
            cells = " | ".join(f"{row[f'{period}']:.1f}" for row in rows for period in PERIODS)
            lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def rounds_table(summary: Found) -> str:
    """Measured rounds over loopback."""
    prefix, lines = "round, measured: ", list[str]()
    for key, row in summary.items():
        if key.startswith(prefix):
            if not lines:
                lines = [f"| ms | {' | '.join(row)} | LGRAWA / uniform |", "|---" * (2 + len(row)) + "|"]
            ratio = row["grawa_hvd LGRAWA"] / row["grawa_hvd uniform"]
            lines.append(
                f"| {key.removeprefix(prefix)} | {' | '.join(f'{ms:.1f}' for ms in row.values())} | {ratio:.2f} |"
            )
    return "\n".join(lines)


def shares_table(summary: Found) -> str:
    """The share of the time that is computing: measured, with the model's figure after it; and modelled for GPUs."""
    prefix = "share computing, "
    rows = {key.removeprefix(prefix): row for key, row in summary.items() if key.startswith(prefix)}
    periods = next(list(row["modelled"]) for row in rows.values() if "modelled" in row)
    titles = ["every step, gradients", *(f"τ = {period}" for period in periods[1:])]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (1 + len(periods)) + "|"]
    for key, row in rows.items():
        title = TITLES[key.split(", ")[-1]]
        if "measured" in row:
            cells = [_both(row["measured"].get(period), row["modelled"][period]) for period in periods]
            lines.append(f"| 12 ranks, 3 hosts, {title} | {' | '.join(cells)} |")
        else:
            lines.append(f"| GPUs, {title} | {' | '.join(_both(None, row[period]) for period in periods)} |")
    return "\n".join(lines)


def _both(measured: float | None, modelled: float) -> str:
    """Percent; what was measured in bold."""
    return ("" if measured is None else f"**{100 * measured:.0f}**, ") + f"{100 * modelled:.0f}"
