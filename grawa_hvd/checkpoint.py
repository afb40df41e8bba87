"""What a checkpoint keeps of a worker besides the wrapped optimizer's own state, and what earlier versions kept."""

from __future__ import annotations

from typing import Any

from grawa_hvd.rounds.member import Member

VERSION = 3
READABLE = (1, 2, 3)


def state_of(member: Member, numbers: dict[int, int]) -> dict[str, Any]:
    """All that a bitwise continuation needs besides the wrapped optimizer's own state.

    Args:
        member: the worker, laid out.
        numbers: id of a parameter → its number in the optimizer's state_dict.
    """
    return {
        "version": VERSION,
        "steps": member.steps,
        "since_round": member.since_round,
        "length": member.length,
        "rounds": member.rounds,
        "reported": member.reported.state(),
        "policy": member.memory,
        "weights": member.weights,
        **member.model.state(numbers),
    }


def load(member: Member, state: dict[str, Any], numbers: dict[int, int]) -> None:
    """Let a worker that has restarted stand where the state was taken.

    Raises:
        ValueError: if the state is of another version, or shapes differ.
    """
    state = current(state)
    member.lay_out()
    member.model.load(state, numbers)
    member.reported.load(state["reported"])
    member.steps, member.rounds = state["steps"], state["rounds"]
    weights = state.get("weights")  # version 3 had none at first
    shape = (member.wire.transport.size, len(member.model.layout.layer_names))
    is_of_others = weights is not None and weights.shape != shape  # the run had other workers or layers
    member.weights, member.memory = (None, None) if is_of_others else (weights, state["policy"])
    member.length = member.length or state["length"]
    # The period may have been another.
    member.since_round = state["since_round"] % member.length if member.length else state["since_round"]


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
