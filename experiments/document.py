"""The tables of docs/experiments.md, from the committed results; `make readme` writes them there."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.verdict import Row, compared, correlation, decisions, table, to_plain, to_uniform

RESULTS = Path(__file__).parent / "results"


def rows() -> list[Row]:
    """Of the experiment on weights."""
    return compared(json.loads((RESULTS / "when_weights_help.json").read_text())["cells"])


TABLES = {
    "WEIGHTS": lambda: table(rows(), to_uniform),
    "WEIGHTS_CENTER": lambda: table(rows(), to_plain),
    "WEIGHTS_CORRELATION": lambda: table(rows(), correlation),
    "WEIGHTS_RULES": lambda: "\n".join(f"{number}. {line}" for number, line in enumerate(decisions(rows()), 1)),
}
