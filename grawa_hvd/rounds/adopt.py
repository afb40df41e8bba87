"""Ranks that arrive take over what the others know: the leader's centre, and all that goes with it."""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.rounds.agreement import gather_bytes
from grawa_hvd.rounds.round import Rooms
from grawa_hvd.transport.wire import Wire


def adopt_(rooms: Rooms, kept: Any, leader: int, wire: Wire) -> Any:
    """Copy the leader's centre, the state of its outer optimizer, and what else it has kept, to all; a collective.

    What a worker has still to send of earlier rounds stays its own.

    Returns:
        What the leader has kept.
    """
    is_leader = wire.transport.rank == leader
    _share_center_(rooms, is_leader, wire)
    outer, kept = _shared((rooms.outer.state(), kept), leader, wire, rooms.layout.device)
    if not is_leader:
        rooms.outer.forget()
        rooms.outer.load(outer)
    return kept


def adopt_memory(kept: Any, leader: int, wire: Wire, device: torch.device) -> Any:
    """What the leader has kept beside its centre, copied to all, where each has a centre of its own; a collective."""
    return _shared(kept, leader, wire, device)


def start_center_(rooms: Rooms, leader: int, wire: Wire) -> None:
    """Let the centre be the leader's parameters; a collective."""
    layout, is_leader = rooms.layout, wire.transport.rank == leader
    if is_leader:
        for bucket, buffer in zip(layout.buckets, rooms.center.buffers, strict=True):
            bucket.copy_to(buffer)
    _share_center_(rooms, is_leader, wire)


def _share_center_(rooms: Rooms, is_owner: bool, wire: Wire) -> None:
    for number, buffer in enumerate(rooms.center.buffers):
        if not is_owner:
            buffer.zero_()
        wire.sum_(buffer, f"adopt.center.{number}", exact=True).wait()
    rooms.center.note(range(len(rooms.layout.parameters)))


def _shared(structure: Any, leader: int, wire: Wire, device: torch.device) -> Any:
    """The leader's structure, copied to every rank; a collective. Its tensors travel as sums, the rest pickled."""
    is_leader = wire.transport.rank == leader
    file = io.BytesIO()
    pickler = _Pickler(file)
    if is_leader:
        pickler.dump(structure)
    payload = gather_bytes(file.getvalue(), wire.transport, "adopt")[leader]
    unpickler = _Unpickler(io.BytesIO(payload), device)
    copied = unpickler.load()
    for number, tensor in enumerate(unpickler.tensors):
        if is_leader:
            tensor.copy_(pickler.tensors[number])
        travelling = tensor if tensor.is_floating_point() else tensor.double()
        wire.sum_(travelling.view(-1), f"adopt.{number}", exact=True).wait()
        tensor.copy_(travelling)
    return copied


class _Pickler(pickle.Pickler):
    """Leaves tensors out, and keeps them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        """For a tensor, what is needed to make another like it."""
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return value.shape, value.dtype, value.is_cpu


class _Unpickler(pickle.Unpickler):
    """Puts zeros where tensors were left out, and keeps them."""

    def __init__(self, file: io.BytesIO, device: torch.device) -> None:
        super().__init__(file)
        self._device = device
        self.tensors: list[Tensor] = []

    def persistent_load(self, identity: Any) -> Tensor:
        """Zeros, on the device of the parameters or in the host's memory."""
        shape, dtype, on_host = identity
        self.tensors.append(torch.zeros(shape, dtype=dtype, device="cpu" if on_host else self._device))
        return self.tensors[-1]
