"""What the protocol's rules say of the defaults, from the rows of all tasks."""

from __future__ import annotations

import math

from experiments.tasks import TASKS
from experiments.verdict import CENTERED, Difference, Row, mean, signed

CANDIDATES = ("lgrawa_floor1", "mediancap", "mgrawa_floor1")  # beside uniform and the default of that time
FLOORS = {"0": "lgrawa", "1": "lgrawa_floor1"}
MEANS_OVER = ("mlp", "convolutions")  # in points of accuracy

Place = tuple[str, str]  # task and condition
Arm = dict[Place, Row]


def decisions(rows: dict[str, list[Row]]) -> list[str]:
    """A line for each default.

    Args:
        rows: of each task that has begun.
    """
    arms: dict[str, Arm] = {}
    for task, own in rows.items():
        for row in own:
            arms.setdefault(row.arm, {})[task, row.condition] = row
    everywhere = arms.get("uniform", {}).keys()
    complete = {name: arm for name, arm in arms.items() if arm.keys() == everywhere}
    return [_averaging(arms, complete), _floor(complete), _consensus(arms)]


def _harms(arm: Arm) -> list[str]:
    return [_named(place) for place, one in _differences(arm).items() if one.harms]


def _helps(arm: Arm) -> list[str]:
    return [_named(place) for place, one in _differences(arm).items() if one.helps]


def _named(place: Place) -> str:
    task, condition = place
    return condition if task == next(iter(TASKS)) else f"{condition} ({task})"


def _differences(arm: Arm) -> dict[Place, Difference]:
    return {place: row.to_uniform for place, row in arm.items() if row.to_uniform is not None}


def _gain(arm: Arm) -> float:
    """The mean difference over the conditions of digits; NaN where it has run in none of them."""
    found = [one.mean for (task, _), one in _differences(arm).items() if task in MEANS_OVER]
    return mean(found) if found else math.nan


def _summary(arm: Arm) -> str:
    harmed, helped = ", ".join(_harms(arm)) or "none", ", ".join(_helps(arm)) or "none"
    return f"harms in {harmed}; helps in {helped}; mean {signed(_gain(arm))}"


def _averaging(arms: dict[str, Arm], complete: dict[str, Arm]) -> str:
    if "lgrawa" not in complete:
        return "averaging: lgrawa has not run everywhere."
    good = [name for name in ("lgrawa", *CANDIDATES) if name in complete]
    good = [name for name in good if _helps(complete[name]) and not _harms(complete[name])]
    best = "lgrawa" if "lgrawa" in good else max(good, key=lambda name: _gain(complete[name]), default="uniform")
    told = ". ".join(f"{name}: {_summary(arms[name])}" for name in ("lgrawa", *CANDIDATES) if name in arms)
    left = [name for name in CANDIDATES if name not in complete]
    missing = f" (no candidate, for not run everywhere: {', '.join(left)})" if left else ""
    return f"averaging: the rule says {best}{missing}. {told}."


def _floor(complete: dict[str, Arm]) -> str:
    able = {value: complete[name] for value, name in FLOORS.items() if name in complete}
    if not able:
        return "floor: no value has run in all conditions."
    best = min(able, key=lambda value: (len(_harms(able[value])), -_gain(able[value])))
    told = [f"{value} harms in {len(_harms(arm))} and has mean {signed(_gain(arm))}" for value, arm in able.items()]
    return f"floor: the rule says {best} ({', '.join(told)})."


def _consensus(arms: dict[str, Arm]) -> str:
    found = [
        (f"{name} in {_named(place)}", row.to_plain)
        for name in CENTERED for place, row in arms.get(name, {}).items() if row.to_plain is not None
    ]  # fmt: skip
    harms, helps = [name for name, one in found if one.harms], [name for name, one in found if one.helps]
    says = '"last"' if helps and not harms else "equal weights"
    harmed, helped = ", ".join(harms) or "none", ", ".join(helps) or "none"
    return f"consensus(weights=): the rule says {says} (harms: {harmed}; helps: {helped})."
