"""What a state_dict keeps of a worker besides the wrapped optimizer's own state, and what earlier versions kept."""

from __future__ import annotations

from typing import Any

import torch

from grawa_hvd.report import Reported
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
        "mix": member.policy,
        "workers": member.wire.transport.size,
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
    # A policy remembers what is of its own kind, and of so many workers. Version 3 did not say which at first.
    size = member.wire.transport.size
    same = state.get("mix", member.policy) == member.policy and state.get("workers", size) == size
    member.memory = state["policy"] if same else None
    weights = state.get("weights")  # version 3 had none at first; and the run may have had other workers or layers
    fits = weights is not None and weights.shape == (member.wire.transport.size, len(member.model.layout.layer_names))
    member.weights = weights if fits else None
    member.length = member.length or state["length"]
    # The period may have been another.
    member.since_round = state["since_round"] % member.length if member.length else state["since_round"]


def for_another_worker(state: dict[str, Any]) -> dict[str, Any]:
    """A state without what is one worker's own: norm estimates, reports, what its rounding has still to send.

    Args:
        state: of this version.
    """
    kept = {number: {k: v for k, v in own.items() if k != "residual"} for number, own in state["state"].items()}
    estimates = {"layers": [], "sums": torch.zeros(0, device="cpu"), "counts": torch.zeros(0, device="cpu")}
    return {**state, "state": kept, "estimates": estimates, "reported": Reported().state()}


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
