"""From cells to differences, and from differences to what the protocol says of the defaults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from experiments.arms import ARMS
from experiments.conditions import CONDITIONS
from experiments.statistics import bootstrap, holm, sign_flips

TUNING_SPLIT = 99  # of the cells that chose the learning rate
LEAST = 0.5  # points: less than this neither helps nor harms
CANDIDATES = ("uniform", "lgrawa_floor0.5", "lgrawa_floor1", "mgrawa", "mgrawa_floor1", "mediancap")
FLOORS = {"0": "lgrawa", ".5": "lgrawa_floor0.5", "1": "lgrawa_floor1"}
CENTERED = ("lgrawa", "lgrawa_floor1", "mediancap")


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, in points of accuracy.

    Attributes:
        mean, low, high: with its 95% interval; p: after Holm's correction, once `corrected`.
    """

    mean: float
    low: float
    high: float
    p: float

    @classmethod
    def of(cls, values: Sequence[float], others: Sequence[float]) -> Difference:
        """Of accuracies from 0 to 1, paired."""
        points = [100 * (value - other) for value, other in zip(values, others, strict=True)]
        return cls(sum(points) / len(points), *bootstrap(points), sign_flips(points))

    @property
    def harms(self) -> bool:
        """As the protocol has it."""
        return self.high < 0 and self.mean <= -LEAST

    @property
    def helps(self) -> bool:
        """As the protocol has it."""
        return self.p < 0.05 and self.mean >= LEAST

    def __str__(self) -> str:
        """Mean and interval; in bold if it harms or helps."""
        text = f"{signed(self.mean)} [{signed(self.low)}, {signed(self.high)}]"
        return f"**{text}**" if self.harms or self.helps else text


@dataclass(frozen=True)
class Row:
    """An arm in a condition.

    Attributes:
        accuracy: of the plain mean, in percent, the mean over seeds.
        to_uniform: of plain means; None for uniform itself.
        to_plain: the last centre minus the plain mean; None where weights are equal, and they are the same.
        correlation: of a worker's weight and its accuracy, the mean over seeds; None where weights are equal.
        effective: number of workers.
        seeds: how many pairs.
    """

    condition: str
    arm: str
    accuracy: float
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


def compared(cells: list[dict[str, Any]]) -> list[Row]:
    """Each arm with uniform, on the seeds that both have."""
    of = {(found["condition"], found["arm"], found["split"]): found for found in cells}
    rows = []
    for condition in CONDITIONS:
        splits = [split for name, arm, split in of if (name, arm) == (condition, "uniform") and split != TUNING_SPLIT]
        shared = {arm: [split for split in splits if (condition, arm, split) in of] for arm in ARMS}
        rows += _corrected([_row(of, condition, arm, own) for arm, own in shared.items() if own], "to_uniform")
    centered = _corrected([row for row in rows if row.arm in CENTERED], "to_plain")
    done = {(row.condition, row.arm): row for row in centered}
    return [done.get((row.condition, row.arm), row) for row in rows]


def _row(of: dict[tuple[str, str, int], Any], condition: str, arm: str, splits: list[int]) -> Row:
    def values(arm: str, measure: str) -> list[Any]:
        return [value for split in splits for value in of[condition, arm, split][measure]]

    plain, known = values(arm, "plain"), [value for value in values(arm, "correlation") if value is not None]
    return Row(
        condition, arm, 100 * mean(plain),
        None if arm == "uniform" else Difference.of(plain, values("uniform", "plain")),
        Difference.of(values(arm, "center"), plain) if known else None,
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


def table(rows: list[Row], told: Callable[[Row], str]) -> str:
    """A row an arm, a column a condition.

    Args:
        rows: as `compared` returns them.
        told: what is said of one; "" for nothing, and arms of whom nothing is said are left out.
    """
    of = {(row.condition, row.arm): told(row) for row in rows}
    conditions = [name for name in CONDITIONS if any(row.condition == name for row in rows)]
    titles = " | ".join(CONDITIONS[name].title for name in conditions)
    lines = [f"| | {titles} |", "|---" * (len(conditions) + 1) + "|"]
    for arm in ARMS:
        said = [of.get((name, arm), "") for name in conditions]
        if any(said):
            lines.append(f"| {ARMS[arm].title} | {' | '.join(said)} |")
    return "\n".join(lines)


def to_uniform(row: Row) -> str:
    """The difference to uniform, in points; of uniform itself its accuracy in percent."""
    return str(row.to_uniform or f"{row.accuracy:.1f}%")


def to_plain(row: Row) -> str:
    """The last centre minus the plain mean, in points."""
    return str(row.to_plain or "")


def correlation(row: Row) -> str:
    """Of a worker's weight and its accuracy, and the effective number of workers; nothing where weights are equal."""
    return "" if row.correlation is None else f"{row.correlation:+.2f}, {row.effective:.1f}".replace("-", "−")


def decisions(rows: list[Row]) -> list[str]:
    """What the protocol's rules say: a line for each default."""
    of = {arm: [row for row in rows if row.arm == arm] for arm in ARMS}
    everywhere = len(of["uniform"])
    return [_averaging(of, everywhere), _floor(of, everywhere), _consensus(of)]


def _summary(rows: list[Row]) -> str:
    differences = {row.condition: row.to_uniform for row in rows if row.to_uniform is not None}
    harms = [name for name, difference in differences.items() if difference.harms]
    helps = [name for name, difference in differences.items() if difference.helps]
    return f"harms in {', '.join(harms) or 'none'}, helps in {', '.join(helps) or 'none'}"


def _good(rows: list[Row]) -> bool:
    differences = [row.to_uniform for row in rows if row.to_uniform is not None]
    return not any(one.harms for one in differences) and any(one.helps for one in differences)


def _gain(rows: list[Row]) -> float:
    return mean([row.to_uniform.mean for row in rows if row.to_uniform is not None])


def _averaging(of: dict[str, list[Row]], everywhere: int) -> str:
    if not of["lgrawa"]:
        return "averaging: lgrawa has not run."
    told = f"averaging: lgrawa {_summary(of['lgrawa'])}"
    if _good(of["lgrawa"]):
        return f"{told}; it stays."
    able = [arm for arm in CANDIDATES[1:] if len(of[arm]) == everywhere and _good(of[arm])]
    best = max(able, key=lambda arm: _gain(of[arm]), default="uniform")
    left = [arm for arm in CANDIDATES[1:] if len(of[arm]) < everywhere]
    missing = f" (not run everywhere: {', '.join(left)})" if left else ""
    return f"{told}; the rule says {best}{missing}."


def _floor(of: dict[str, list[Row]], everywhere: int) -> str:
    able = {value: of[arm] for value, arm in FLOORS.items() if len(of[arm]) == everywhere}
    if not able:
        return "floor: no value has run in all conditions."
    harms = {value: sum(row.to_uniform.harms for row in own if row.to_uniform) for value, own in able.items()}
    best = min(able, key=lambda value: (harms[value], -_gain(able[value])))
    told = "; ".join(f"{value}: {_summary(own)}, mean {signed(_gain(own))}" for value, own in able.items())
    return f"floor: the rule says {best} ({told})."


def _consensus(of: dict[str, list[Row]]) -> str:
    differences = [(row, row.to_plain) for arm in CENTERED for row in of[arm] if row.to_plain is not None]
    harms = [f"{row.arm} in {row.condition}" for row, one in differences if one.harms]
    helps = [f"{row.arm} in {row.condition}" for row, one in differences if one.helps]
    says = '"last"' if helps and not harms else "equal weights"
    harmed, helped = ", ".join(harms) or "none", ", ".join(helps) or "none"
    return f"consensus(weights=): the rule says {says} (harms: {harmed}; helps: {helped})."
