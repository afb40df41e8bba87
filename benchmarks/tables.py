"""What the tables of the documents are made with: the committed results, and Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

Rows = list[list[str]]


def markdown(head: list[str], rows: Rows) -> str:
    """A table, the first column of which has no title."""
    lines = [["", *head], ["---"] * (len(head) + 1), *rows]
    return "\n".join(("|" + "|".join(line) + "|") if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def results(name: str) -> Any:
    """A committed file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text())
