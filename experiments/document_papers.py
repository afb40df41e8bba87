"""The tables of docs/experiments_papers.md, from the committed results; `make readme` writes them there."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments import communication_report, convergence_report, flatness_report, per_step_report
from experiments.papers_verdicts import claims_table

RESULTS = Path(__file__).parent / "results"
SIZES = [4, 8]


def summary(name: str) -> dict[str, Any]:
    """What was concluded from the runs of an experiment."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["summary"]
    return found


def recipe() -> str:
    """The arms that keep pace with gradient averaging, or are ahead of it, with every number of workers."""
    lines = ["| | learning rate drops | constant |", "|---|---|---|"]
    found = [keep_pace(summary(name)) for name in ("per_step", "per_step_constant")]
    for period in (4, 16, 64):
        part = f", period {period},"
        cells = ["; ".join(arm.replace(part, ",") for arm in arms if part in arm) or "none" for arms in found]
        lines.append(f"| τ = {period} | {' | '.join(cells)} |".replace("lgrawa", "LGRAWA"))
    return "\n".join(lines)


def keep_pace(found: dict[str, Any]) -> list[str]:
    """The names of those arms."""
    paces: dict[str, set[str]] = defaultdict(set)
    for key, row in found.items():
        if key.endswith(" − gradients"):
            paces[key.split(" workers")[0].rsplit(", ", 1)[0]].add(row["pace"])
    return [arm for arm, of_sizes in paces.items() if of_sizes <= {"keeps pace", "ahead"}]


def of(table: Callable[..., str], name: str, *sizes: Any) -> Callable[[], str]:
    """A table of an experiment."""
    return lambda: table(summary(name), *sizes)


TABLES = {
    "CLAIMS": lambda: claims_table(summary("convergence"), summary("flatness"), summary("communication"), SIZES),
    "PER_STEP_RECIPE": recipe,
    "PER_STEP_EFFECTS": of(per_step_report.effects_table, "per_step", SIZES),
    "PER_STEP_CONSTANT_EFFECTS": of(per_step_report.effects_table, "per_step_constant", SIZES),
    "CONTROLS": of(convergence_report.controls_table, "convergence", SIZES),
    "FLATNESS_RATIOS": of(flatness_report.ratios_table, "flatness", SIZES),
    "COMMUNICATION": of(communication_report.arms_table, "communication", SIZES),
    "COMMUNICATION_PERIODS": of(communication_report.periods_table, "convergence", SIZES),
    "COMMUNICATION_ROUNDS": of(communication_report.rounds_table, "communication"),
    "COMMUNICATION_SHARES": of(communication_report.shares_table, "communication"),
}
for size in SIZES:
    TABLES |= {
        f"PER_STEP_{size}": of(per_step_report.arms_table, "per_step", size),
        f"PER_STEP_CONSTANT_{size}": of(per_step_report.arms_table, "per_step_constant", size),
        f"ARMS_{size}": of(convergence_report.arms_table, "convergence", size),
        f"PAIRS_{size}": of(convergence_report.pairs_table, "convergence", size),
        f"FLATNESS_{size}": of(flatness_report.arms_table, "flatness", size),
    }
