"""From cells to differences, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.arms import ARMS
from experiments.rates import TUNING_SPLIT, chosen
from experiments.statistics import bootstrap, holm, sign_flips
from experiments.tasks import Task

CENTERED = ("lgrawa", "lgrawa_floor1", "mediancap")  # of which the rule on `consensus(weights=)` speaks


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, in points.

    Attributes:
        mean, low, high: with its 95% interval; p: after Holm's correction, once `corrected`.
        least: less than this neither helps nor harms.
    """

    mean: float
    low: float
    high: float
    p: float
    least: float = 0.5

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float], least: float = 0.5) -> Difference:
        """Of accuracies from 0 to 1 or other measures of which .01 is a point, paired."""
        points = [100 * (value - other) for value, other in zip(values, others, strict=True)]
        return cls(sum(points) / len(points), *bootstrap(points), sign_flips(points), least)

    @property
    def harms(self) -> bool:
        """As the protocol has it."""
        return self.high < 0 and self.mean <= -self.least

    @property
    def helps(self) -> bool:
        """As the protocol has it."""
        return self.p < 0.05 and self.mean >= self.least

    def __str__(self) -> str:
        """Mean and interval; in bold if it harms or helps."""
        text = f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"
        return f"**{text}**" if self.harms or self.helps else text


@dataclass(frozen=True)
class Row:
    """An arm in a condition of a task.

    Attributes:
        lr: learning rate.
        told: how good the plain mean is, the mean over seeds.
        to_uniform: of plain means; None for uniform itself.
        to_plain: the last centre minus the plain mean; None where weights are equal, and they are the same.
        correlation: of a worker's weight and its goodness, the mean over seeds; None where weights are equal.
        effective: number of workers.
        seeds: how many pairs.
    """

    condition: str
    arm: str
    lr: float
    told: str
    to_uniform: Difference | None
    to_plain: Difference | None
    correlation: float | None
    effective: float
    seeds: int


def signed(value: float) -> str:
    """A number with its sign, to a tenth."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else f"{'−' if value < 0 else '+'}{text}"


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def compared(task: Task, cells: list[dict[str, Any]], lr: float | None = None) -> list[Row]:
    """Each arm with uniform, on the seeds that both have.

    Args:
        task: of the cells.
        cells: as `cell.run` returns them, those that choose rates among them.
        lr: the learning rate of all; None: each arm has its own in each condition.
    """
    rows = []
    for condition in task.conditions:
        of: dict[tuple[str, int], dict[str, Any]] = {}
        for arm in ARMS:
            key = (condition, arm, chosen(task, condition, arm, cells) if lr is None else lr)
            own = [one for one in cells if (one["condition"], one["arm"], one["lr"]) == key]
            of |= {(arm, one["split"]): one for one in own if one["split"] != TUNING_SPLIT}
        shared = {arm: sorted(split for name, split in of if name == arm and ("uniform", split) in of) for arm in ARMS}
        rows += _corrected([_row(task, of, arm, splits) for arm, splits in shared.items() if splits], "to_uniform")
    centered = _corrected([row for row in rows if row.arm in CENTERED], "to_plain")
    done = {(row.condition, row.arm): row for row in centered}
    return [done.get((row.condition, row.arm), row) for row in rows]


def _row(task: Task, of: dict[tuple[str, int], Any], arm: str, splits: list[int]) -> Row:
    def values(arm: str, measure: str) -> list[Any]:
        return [value for split in splits for value in of[arm, split][measure]]

    plain, known = values(arm, "plain"), [value for value in values(arm, "correlation") if value is not None]
    one = of[arm, splits[0]]
    return Row(
        one["condition"], arm, one["lr"], task.told.format(abs(mean(plain))),
        None if arm == "uniform" else Difference.of(plain, values("uniform", "plain"), task.least),
        Difference.of(values(arm, "center"), plain, task.least) if known else None,
        mean(known) if known else None, mean(values(arm, "effective")), len(plain),
    )  # fmt: skip


def _corrected(rows: list[Row], name: str) -> list[Row]:
    """The rows with Holm's correction over all of them that have such a difference."""
    have = [row for row in rows if getattr(row, name) is not None]
    adjusted = iter(holm([getattr(row, name).p for row in have]))
    return [
        row if getattr(row, name) is None else replace(row, **{name: replace(getattr(row, name), p=next(adjusted))})
        for row in rows
    ]


def table(task: Task, rows: list[Row], told: Callable[[Row], str]) -> str:
    """A row an arm, a column a condition.

    Args:
        task: of the rows.
        rows: as `compared` returns them.
        told: what is said of one; "" for nothing, and arms of whom nothing is said are left out.
    """
    of = {(row.condition, row.arm): told(row) for row in rows}
    conditions = [name for name in task.conditions if any(row.condition == name for row in rows)]
    titles = " | ".join(task.conditions[name].title for name in conditions)
    lines = [f"| | {titles} |", "|---" * (len(conditions) + 1) + "|"]
    for arm in ARMS:
        said = [of.get((name, arm), "") for name in conditions]
        if any(said):
            lines.append(f"| {ARMS[arm].title} | {' | '.join(said)} |")
    return "\n".join(lines)


def to_uniform(row: Row) -> str:
    """The difference to uniform, in points; of uniform itself how good it is."""
    return str(row.to_uniform or row.told)


def rate(row: Row) -> str:
    """The learning rate."""
    return f"{row.lr:g}".replace("0.", ".")


def to_plain(row: Row) -> str:
    """The last centre minus the plain mean, in points."""
    return str(row.to_plain or "")


def correlation(row: Row) -> str:
    """Of a worker's weight and its goodness, and the effective number of workers; nothing where weights are equal."""
    return "" if row.correlation is None else f"{row.correlation:+.2f}, {row.effective:.1f}".replace("-", "−")
