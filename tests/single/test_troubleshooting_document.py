"""Each message that docs/troubleshooting.md quotes is one that the package has, word by word."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/troubleshooting.md").read_text()
QUOTED = re.findall(r"^\| `(.+?)` \| ", TEXT, re.MULTILINE)


def written(node: ast.expr) -> str:
    """A string or an f-string as it is printed, with … for the values in it."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)  # type: ignore[misc]


def messages() -> list[str]:
    """All strings of the package."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "grawa_hvd").rglob("*.py")]
    strings = [node for tree in trees for node in ast.walk(tree) if isinstance(node, (ast.Constant, ast.JoinedStr))]
    return [written(node) for node in strings]


MESSAGES = messages()


@pytest.mark.parametrize("quoted", QUOTED, ids=[quoted[:40] for quoted in QUOTED])
def test_a_message_is_the_package_s(quoted: str) -> None:
    assert any(quoted in message for message in MESSAGES), quoted


def test_all_rows_are_looked_at() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| message")]
    assert len(QUOTED) == len(rows) >= 25
