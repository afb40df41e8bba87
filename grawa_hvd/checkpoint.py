"""What a checkpoint keeps of a worker besides the wrapped optimizer's own state, and what earlier versions kept."""

from __future__ import annotations

from typing import Any

VERSION = 3
READABLE = (1, 2, 3)


def current(state: dict[str, Any]) -> dict[str, Any]:
    """A state as this version writes it, given one of this version or of an earlier one.

    Version 2 knew outer momentum alone, and kept the velocity v of c ← c + v where torch's SGD keeps −v. Versions 1 and
    2 had no policies with a memory.

    Raises:
        ValueError: if it is of another version.
    """
    if state["version"] not in READABLE:
        raise ValueError(f"the checkpoint's grawa version must be one of {READABLE}, but is {state['version']!r}")
    if state["version"] == VERSION:
        return state
    kept = {number: _with_outer(own) for number, own in state["state"].items()}
    return {**state, "version": VERSION, "state": kept, "policy": None, "length": None}


def _with_outer(own: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in own.items() if key != "velocity"}
    return rest if "velocity" not in own else {**rest, "outer": {"momentum_buffer": -own["velocity"]}}
