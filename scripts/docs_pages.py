"""What mkdocs builds from: the repository's own pages at their own places, so that their links hold in both.

`mkdocs.yml` names this file as a hook. The pages link to each other and to results beside them, so the folder that
mkdocs reads has them at the same places as the repository: `build/pages`, made of symbolic links.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs",
    "benchmarks/results",
    "experiments/README.md",
    "experiments/results",
)


def on_config(config: Any) -> None:
    """Called by mkdocs once its settings are read."""
    config.docs_dir = str(linked(ROOT / "build" / "pages"))
    config.nav = completed(config.nav)


def linked(folder: Path) -> Path:
    """A folder of links to what is shown, at the places that it has in the repository."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in SHOWN:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(ROOT / name)
    return folder


def completed(nav: list[Any]) -> list[Any]:
    """The navigation, with the pages of docs/ that it does not name at its end."""
    named = set(pages_of(nav))
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    rest = [page for page in found if page not in named]
    return [*nav, {"More": rest}] if rest else nav


def pages_of(nav: Any) -> list[str]:
    """The pages that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]
