"""What follows from the runs of `experiments.convergence`, in numbers, and its tables."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np

from experiments.comparison import family, p_shown, shown
from experiments.convergence_arms import ARMS, Setting, named
from experiments.papers_cost import cost_of

Found = Mapping[str, Any]
Chosen = Mapping[tuple[str, int], tuple[Setting, float]]
CONTROLLED = [name for name, arm in ARMS.items() if arm.has_control]


def summary_of(found: Found, settings: Chosen, tuned: Found, samples: int) -> dict[str, Any]:
    """By name: what each arm reached and cost; the differences of each pair, and of each arm and its control."""
    summary: dict[str, Any] = {}
    for size in sorted({size for _, size in settings}):
        ends = {name: found[f"{name}, {size} workers"] for name in ARMS}
        times = {name: reached(ends, settings, name, size, samples) for name in ARMS}
        for name, runs in ends.items():
            setting, lr = settings[name, size]
            summary[f"{name}, {size} workers"] = {
                "setting": named(setting), "period": setting.get("period", 1), "lr": lr,
                **spread("error", errors(runs)), **spread("gap", gaps(runs)),
                "train": round(fmean(run["train"] for run in runs), 3),
                **cost_of(ARMS[name], setting, size, samples)._asdict(), **spread("until", times[name]),
                "curve": [round(float(each), 3) for each in np.mean([run["curve"] for run in runs], axis=0)],
            }  # fmt: skip
        pairs = {f"{a} − {b}": (errors(ends[a]), errors(ends[b])) for a, b in combinations(ARMS, 2)}
        summary |= _keyed(f"{size} workers, error", family(pairs))
        sooner = {f"{a} − DP+SGD": (times[a], times["DP+SGD"]) for a in ARMS if a != "DP+SGD"}
        summary |= _keyed(f"{size} workers, seconds", family(sooner))
        controls = {name: found[f"control of {name}, {size} workers"] for name in CONTROLLED}
        beside = {f"{name} − its control": (errors(ends[name]), errors(controls[name])) for name in CONTROLLED}
        summary |= _keyed(f"{size} workers, control", family(beside))
        summary |= _keyed(f"{size} workers, by period", by_period(tuned, size))
    return summary


def _keyed(prefix: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}: {name}": row for name, row in rows.items()}


def errors(runs: list[Any]) -> list[float]:
    """Percent of the test images."""
    return [run["test"] for run in runs]


def gaps(runs: list[Any]) -> list[float]:
    """Error on test images minus error on training images, the labels of both wrong as often."""
    return [run["noisy_test"] - run["train"] for run in runs]


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {name: round(fmean(values), 3), f"{name}_sd": round(stdev(values), 3) if len(values) > 1 else 0.0}


def reached(ends: Found, settings: Chosen, name: str, size: int, samples: int) -> list[float]:
    """Modelled seconds until the error is as low as DP+SGD's of that seed at the end; the most if it never is."""
    costs = {arm: cost_of(ARMS[arm], settings[arm, size][0], size, samples).seconds for arm in ARMS}
    found = []
    for run, goal in zip(ends[name], errors(ends["DP+SGD"]), strict=True):
        curve = run["curve"]
        # A curve is kept with one digit less.
        step = next((number for number, error in enumerate(curve, 1) if error <= goal + 1e-3), None)
        found.append(max(costs.values()) if step is None else costs[name] * step / len(curve))
    return found


def by_period(tuned: Found, size: int) -> dict[str, dict[str, float]]:
    """Arm → period → the least validation error of its grid."""
    return {
        name: {
            f"{period}": min(tuned[f"grid, {name}, {size} workers, period {period}"].values()) for period in arm.periods
        }
        for name, arm in ARMS.items() if arm.averages == "models"
    }  # fmt: skip


def arms_table(summary: Found, size: int) -> str:
    """What each arm reached, and cost."""
    lines = [
        "| arm | chosen | lr | test error, % | gap, points | train error, % | rounds | MB sent | modelled s | until |",
        "|---" * 10 + "|",
    ]
    for name in ARMS:
        row = summary[f"{name}, {size} workers"]
        lines.append(
            f"| {name} | {row['setting']} | {row['lr']:g} | {row['error']:.2f} ± {row['error_sd']:.2f} | "
            f"{row['gap']:.1f} ± {row['gap_sd']:.1f} | {row['train']:.1f} | {row['rounds']} | {row['megabytes']:.2f} | "
            f"{row['seconds']:.1f} | {row['until']:.1f} |"
        )
    return "\n".join(lines)


def pairs_table(summary: Found, size: int) -> str:
    """Each arm's error minus each other's, in points, and p before and after Holm's correction."""
    names = list(ARMS)
    lines = [f"| row − column | {' | '.join(names[1:])} |", "|---" * len(names) + "|"]
    for number, a in enumerate(names[:-1]):
        cells = [""] * number
        for b in names[number + 1 :]:
            row = summary[f"{size} workers, error: {a} − {b}"]
            mark = "**" if row["holm"] < 0.05 else ""
            mean = f"{row['mean']:+.2f}".replace("-", "−")
            cells.append(f"{mark}{mean}{mark} ({p_shown(row['p'])}, {p_shown(row['holm'])})")
        lines.append(f"| {a} | {' | '.join(cells)} |")
    return "\n".join(lines)


def controls_table(summary: Found, sizes: list[int]) -> str:
    """Each way to weigh workers minus uniform weights in the same setting, and minus uniform as tuned; in points."""
    head = " | ".join(f"{size} workers: − control | p, Holm | − tuned uniform | p, Holm" for size in sizes)
    lines = [f"| | {head} |", "|---" * (1 + 4 * len(sizes)) + "|"]
    for name in CONTROLLED:
        cells = []
        for size in sizes:
            control = summary[f"{size} workers, control: {name} − its control"]
            uniform = turned(summary[f"{size} workers, error: uniform − {name}"])
            for row in (control, uniform):
                cells += [shown(row, 2), f"{p_shown(row['p'])}, {p_shown(row['holm'])}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def turned(row: Mapping[str, float]) -> dict[str, float]:
    """b − a from a − b."""
    return {**row, "mean": -row["mean"], "low": -row["high"], "high": -row["low"]}


def minus(summary: Found, size: int, a: str, b: str) -> dict[str, float]:
    """a − b, in whichever order it is kept."""
    row: dict[str, float] | None = summary.get(f"{size} workers, error: {a} − {b}")
    return row if row is not None else turned(summary[f"{size} workers, error: {b} − {a}"])
