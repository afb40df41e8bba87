"""The documentation site: every page of docs/ is in its navigation, named or not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import docs_pages  # noqa: E402


def test_pages_that_are_not_named_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("docs/a.md", "docs/b.md", "docs/api/c.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# A page\n")
    monkeypatch.setattr(docs_pages, "ROOT", tmp_path)
    nav = ["README.md", {"Use it": ["docs/b.md"]}]
    assert docs_pages.completed(nav) == [*nav, {"More": ["docs/a.md", "docs/api/c.md"]}]
    everything = [*nav, "docs/a.md", {"API": ["docs/api/c.md"]}]
    assert docs_pages.completed(everything) == everything


def test_what_is_shown_is_linked_at_its_place(tmp_path: Path) -> None:
    for _ in range(2):  # over an older one, too
        folder = docs_pages.linked(tmp_path / "pages")
    for name in docs_pages.SHOWN:
        assert (folder / name).resolve() == ROOT / name and (ROOT / name).exists()
