"""The tables of docs/experiments.md, from the committed results; `make readme` writes them there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from experiments.rules import decisions
from experiments.tasks import TASKS
from experiments.verdict import Row, compared, correlation, rate, table, to_plain, to_uniform
from experiments.when_weights_help import RESULTS, STAGES, file_of


def rows(model: str, lr: float | None = None) -> list[Row]:
    """Of the experiment on weights: each arm at its own learning rate, or all at one."""
    file: Path = file_of(model, RESULTS)
    return compared(TASKS[model], json.loads(file.read_text())["cells"], lr) if file.exists() else []


def of(model: str, told: Callable[[Row], str], lr: float | None = None) -> Callable[[], str]:
    """A table of a model, once something of it can be compared."""

    def made() -> str:
        found = rows(model, lr)
        return table(TASKS[model], found, told) if found else "Not run yet."

    return made


def rules() -> str:
    """What the protocol says of the defaults, numbered."""
    found = {model: rows(model) for model in dict.fromkeys(stage.model for stage in STAGES)}
    lines = decisions({model: own for model, own in found.items() if own})
    return "\n".join(f"{number}. {line}" for number, line in enumerate(lines, 1))


TABLES = {
    "WEIGHTS": of("mlp", to_uniform),
    "WEIGHTS_CONVOLUTIONS": of("convolutions", to_uniform),
    "WEIGHTS_TEXT": of("text", to_uniform),
    "WEIGHTS_AT_ONE_RATE": of("mlp", to_uniform, lr=0.1),
    "WEIGHTS_RATES": of("mlp", rate),
    "WEIGHTS_CENTER": of("mlp", to_plain),
    "WEIGHTS_CENTER_CONVOLUTIONS": of("convolutions", to_plain),
    "WEIGHTS_CENTER_TEXT": of("text", to_plain),
    "WEIGHTS_CORRELATION": of("mlp", correlation),
    "WEIGHTS_RULES": rules,
}
