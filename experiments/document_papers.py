"""The tables of docs/experiments_papers.md, from the committed results; `make readme` writes them there."""

from __future__ import annotations

import json
from collections import defaultdict
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


TABLES = {
    "CLAIMS": lambda: claims_table(summary("convergence"), summary("flatness"), summary("communication"), SIZES),
    "PER_STEP_RECIPE": recipe,
    **{
        f"{name.upper()}_EFFECTS": lambda name=name: per_step_report.effects_table(summary(name), SIZES)
        for name in ("per_step", "per_step_constant")
    },
    **{
        f"{name.upper()}_{size}": lambda name=name, size=size: per_step_report.arms_table(summary(name), size)
        for name in ("per_step", "per_step_constant")
        for size in SIZES
    },
    **{f"ARMS_{size}": lambda size=size: convergence_report.arms_table(summary("convergence"), size) for size in SIZES},
    **{
        f"PAIRS_{size}": lambda size=size: convergence_report.pairs_table(summary("convergence"), size)
        for size in SIZES
    },
    "CONTROLS": lambda: convergence_report.controls_table(summary("convergence"), SIZES),
    **{f"FLATNESS_{size}": lambda size=size: flatness_report.arms_table(summary("flatness"), size) for size in SIZES},
    "FLATNESS_RATIOS": lambda: flatness_report.ratios_table(summary("flatness"), SIZES),
    "COMMUNICATION": lambda: communication_report.arms_table(summary("communication"), SIZES),
    "COMMUNICATION_PERIODS": lambda: communication_report.periods_table(summary("convergence"), SIZES),
    "COMMUNICATION_ROUNDS": lambda: communication_report.rounds_table(summary("communication")),
    "COMMUNICATION_SHARES": lambda: communication_report.shares_table(summary("communication")),
}
