"""What a soak comes to: which steps count, what the rest of the time went into, and whether anything was lost."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

Event = dict[str, Any]
SHARES = {
    "goodput": "steps that count", "lost": "steps that were lost", "apart": "apart: failing, restarting, committing",
}  # fmt: skip


def account(log: list[Event]) -> tuple[list[Event], list[Event], int]:
    """A worker's steps that count, its steps that were lost, and by how many steps it was set back at most.

    What a worker has not committed when it starts anew, or dies, is lost; so is what others do not go on from.
    """
    kept: list[Event] = []
    pending: list[Event] = []
    lost: list[Event] = []
    furthest_back = 0
    for event in log:
        if event["kind"] == "step":
            pending.append(event)
        elif event["kind"] == "commit":
            kept += pending
            pending = []
        elif event["kind"] == "start":
            steps = [*kept, *pending]
            if steps:
                furthest_back = max(furthest_back, steps[-1]["step"] - event["step"])
            lost += [*pending, *(one for one in kept if one["step"] > event["step"])]
            kept, pending = [one for one in kept if one["step"] <= event["step"]], []
    return kept, [*lost, *pending], furthest_back


def figures(logs: list[list[Event]], faults: list[Event], plan: Event) -> Event:
    """All figures of a job.

    Args:
        logs: what each worker noted.
        faults: what was done to them.
        plan: what they were told.
    """
    accounts = [account(log) for log in logs]
    steps = [step for log in logs for step in log if step["kind"] == "step"]
    begin, end = min(one["time"] - one["seconds"] for one in steps), max(one["time"] for one in steps)
    kept = [step for one, _, _ in accounts for step in one]
    lost = [step for _, one, _ in accounts for step in one]
    slots = max(one["size"] for one in steps)
    whole = slots * (end - begin)
    goodput, wasted = (sum(step["seconds"] for step in some) / whole for some in (kept, lost))
    losses = sorted((one["time"] - begin, one["step"], one["loss"]) for log in logs for one in log
                    if one["kind"] == "loss")  # fmt: skip
    return {
        "seconds": end - begin,
        "goodput": goodput, "lost": wasted, "apart": 1 - goodput - wasted,
        "samples_that_count_per_second": plan["batch"] * len(kept) / (end - begin),
        "steps": max(one["step"] for one in kept), "steps_lost": len(lost),
        "set_back_at_most": max(back for _, _, back in accounts),
        "workers": len(logs), "failures_per_hour": 3600 * len(faults) / (end - begin),
        "seconds_until_a_step": _summary([_until(steps, fault, 1) for fault in faults]),
        "seconds_until_whole": _summary([_until(steps, fault, slots) for fault in faults]),
        "loss": _thinned(losses), "progress": _thinned(_progress(kept, begin)),
        "faults": [{**fault, "time": fault["time"] - begin} for fault in faults],
    }  # fmt: skip


def _until(steps: list[Event], fault: Event, size: int) -> float | None:
    """Seconds from a fault, which met a whole job, until a step of a later world of so many workers or more.

    None if there was none before the end.
    """
    later = sorted((one["time"], one["size"]) for one in steps if one["time"] > fault["time"])
    is_later_world = False
    for time, workers in later:
        is_later_world |= workers < fault["workers"]
        if is_later_world and workers >= size:
            return float(time - fault["time"])
    return None


def _summary(values: list[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    return {"median": statistics.median(known), "longest": max(known), "count": len(known)} if known else None


def _progress(kept: list[Event], begin: float) -> list[tuple[float, int]]:
    times = sorted(one["time"] - begin for one in kept)
    return [(time, number + 1) for number, time in enumerate(times)]


def _thinned(rows: list[Any], most: int = 300) -> list[list[float]]:
    stride = max(1, len(rows) // most)
    return [[float(f"{value:.5g}") for value in row] for row in rows[::stride]]


def complaints(row: Event, plan: Event) -> list[str]:
    """What must hold after a soak and does not; empty if all is well."""
    found = []
    fifths = _fifths([loss for _, _, loss in row["loss"]])
    if any(later >= earlier for earlier, later in itertools.pairwise(fifths)):
        found.append(f"the loss did not keep falling: medians of fifths {[f'{one:.3g}' for one in fifths]}")
    if row["set_back_at_most"] > plan["commit_every"]:
        found.append(f"a worker was set back by {row['set_back_at_most']} steps, a commit is {plan['commit_every']}")
    if row["exit_code"] != 0:
        found.append(f"the launcher ended with {row['exit_code']}")
    found += [f"left behind: {kind} {row[kind]}" for kind in ("processes_left", "files_left") if row[kind]]
    return found


def _fifths(losses: list[float]) -> list[float]:
    size = len(losses) // 5
    return [statistics.median(losses[number * size : (number + 1) * size]) for number in range(5)] if size else []


def table(rows: list[Event]) -> str:
    """The figures side by side, as text."""
    lines = {
        "goodput: time on steps that count": lambda row: f"{row['goodput']:.1%}",
        "time on steps that were lost": lambda row: f"{row['lost']:.1%}",
        "failing, restarting, committing": lambda row: f"{row['apart']:.1%}",
        "samples that count, a second": lambda row: f"{row['samples_that_count_per_second']:,.0f}",
        "failures": lambda row: f"{len(row['faults'])}",
        "failures an hour": lambda row: f"{row['failures_per_hour']:.0f}",
        "set back at most, steps": lambda row: f"{row['set_back_at_most']}",
        "s until the others step again": lambda row: _seconds(row["seconds_until_a_step"]),
        "s until all are there again": lambda row: _seconds(row["seconds_until_whole"]),
        "steps of the run": lambda row: f"{row['steps']:,}",
        "loss at the end": lambda row: f"{row['loss'][-1][2]:.3g}",
    }
    head = f"{'':<36}" + "".join(f"{row['name']:>28}" for row in rows)
    return "\n".join([head, *(f"{name:<36}" + "".join(f"{of(row):>28}" for row in rows) for name, of in lines.items())])


def _seconds(summary: dict[str, float] | None) -> str:
    return "never" if summary is None else f"{summary['median']:.1f} (longest {summary['longest']:.1f})"
