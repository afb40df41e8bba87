"""Results on disk: a cell is written when it is finished, and not computed again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Store:
    """A JSON file of settings and cells.

    Args:
        path: where it is, or will be.
        settings: what all cells have in common.

    Raises:
        ValueError: if the file has cells of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self.settings = path, settings
        self.cells: list[dict[str, Any]] = []
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise ValueError(f"{path} has results of {found['settings']}, not of {settings}: name another --json")
            self.cells = found["cells"]

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The finished cell of this key, or None."""
        return next((cell for cell in self.cells if all(cell.get(name) == value for name, value in key.items())), None)

    def add(self, cell: dict[str, Any]) -> None:
        """Keep a finished cell; the file is either the old one or the new one, also if the run is stopped here."""
        self.cells.append(cell)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n  ".join(json.dumps(rounded(cell)) for cell in self.cells)
        part = self._path.with_suffix(".part")
        part.write_text(f'{{"settings": {json.dumps(self.settings)},\n "cells": [\n  {lines}\n ]}}\n')
        part.replace(self._path)


def rounded(value: Any) -> Any:
    """Five digits behind the point are enough of an accuracy."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return {name: rounded(entry) for name, entry in value.items()} if isinstance(value, dict) else value
