"""The learning rate of each arm in each condition."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from experiments.arms import ARMS
from experiments.tasks import Task

TUNING_SPLIT = 99  # of the cells that choose rates
BORROWED = {"half_speed": ("iid",), "skew_0.5": ("iid", "skew_0.1"), "noisy_1": ("iid", "noisy_3")}


def search(rates: tuple[float, ...], first: int, score: Callable[[float], float]) -> float:
    """The best rate around the first: while the best lies at the edge of what has been tried, the next one is tried.

    Args:
        rates: rising.
        first: place of the rate that is tried first, with both its neighbours.
        score: of a rate, the more the better; of equals the lowest rate is taken.
    """
    tried: dict[int, float] = {}
    wanted = {first - 1, first, first + 1}
    while wanted := {place for place in wanted if 0 <= place < len(rates)} - tried.keys():
        tried.update({place: score(rates[place]) for place in sorted(wanted)})
        best = max(tried, key=lambda place: (tried[place], -place))
        wanted = {best - 1, best + 1}
    return rates[best]


def sources(task: Task, condition: str, arm: str) -> list[str]:
    """The conditions by which the rate of an arm in a condition is chosen."""
    borrowed = [name for name in BORROWED.get(condition, ()) if name in task.conditions]
    return [name for name in borrowed if ARMS[arm].runs_in(task.conditions[name])] or [condition]


def chosen(task: Task, condition: str, arm: str, cells: Iterable[dict[str, Any]]) -> float | None:
    """The rate by the tuning cells; None if one that is needed is not there."""
    tuning = [cell for cell in cells if (cell["arm"], cell["split"]) == (arm, TUNING_SPLIT)]
    own = {(cell["condition"], cell["lr"]): cell for cell in tuning}
    try:
        return search(
            task.rates, task.first,
            lambda lr: sum(reached(own[name, lr]) for name in sources(task, condition, arm)),
        )  # fmt: skip
    except KeyError:
        return None


def reached(cell: dict[str, Any]) -> float:
    """What a tuning cell says of its rate."""
    seeds: list[float] = cell["plain"]
    return sum(seeds) / len(seeds)
