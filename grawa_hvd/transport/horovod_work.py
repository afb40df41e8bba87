"""Horovod's collectives that are under way, which `hvd.join` waits for."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.transport.base import Links, MismatchedBuffersError
from grawa_hvd.transport.gone import explained

try:
    import horovod.torch as hvd
    from horovod.common.exceptions import HorovodInternalError
except ImportError as error:
    raise ImportError(
        f"grawa_hvd averages over Horovod, which cannot be imported ({error}): install it for this PyTorch with "
        "scripts/install_horovod.py of grawa_hvd's source"
    ) from error

__all__ = ["Allreduce", "Alltoall", "Gathered", "hvd", "let_join_wait_for", "under_way"]


def _explained() -> AbstractContextManager[None]:
    seconds = os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", "30")
    return explained("Horovod", f"HOROVOD_GLOO_TIMEOUT_SECONDS, which is {seconds}")


class Allreduce:
    """A sum over the workers, in place."""

    def __init__(self, buffer: Tensor, name: str, process_set: Any) -> None:
        with _explained():
            self._handle = hvd.allreduce_async_(buffer, name=name, op=hvd.Sum, process_set=process_set)
        self._waited = False

    def done(self) -> bool:
        """See `Work`."""
        return self._waited or bool(hvd.poll(self._handle))

    def wait(self) -> None:
        """See `Work`."""
        self._waited = True
        try:
            with _explained():
                hvd.synchronize(self._handle)
        except HorovodInternalError as error:
            if "Mismatched" in str(error):
                raise MismatchedBuffersError(str(error)) from error
            raise


class Alltoall:
    """A buffer that goes to some workers, and those of others that come."""

    def __init__(self, buffer: Tensor, links: Links, rank: int, name: str, process_set: Any) -> None:
        self._dtype, self._shape = buffer.dtype, (len(links.sources[rank]), buffer.numel())
        targets = links.targets(rank)
        splits = torch.zeros(len(links.sources), dtype=torch.int32, device="cpu")
        splits[targets] = buffer.numel()
        # Horovod refuses bfloat16, whose bits travel as well as integers: nothing is added.
        wire = buffer.view(torch.int16) if buffer.dtype == torch.bfloat16 else buffer
        wire = wire.repeat(len(targets))
        self.bytes = wire.numel() * wire.element_size()
        with _explained():
            self._handle = hvd.alltoall_async(wire, splits, name=name, process_set=process_set)
        self._waited = False

    def done(self) -> bool:
        """See `Work`."""
        return self._waited or bool(hvd.poll(self._handle))

    def wait(self) -> Tensor:
        """What has come, [sources, elements]."""
        self._waited = True
        with _explained():
            received, _ = hvd.synchronize(self._handle)
        found: Tensor = received.view(self._dtype).view(self._shape)
        return found


class Gathered:
    """Buffers that have come."""

    def __init__(self, received: Tensor, sent: int) -> None:
        self._received, self.bytes = received, sent

    def done(self) -> bool:
        """See `Work`."""
        return True

    def wait(self) -> Tensor:
        """What has come, [sources, elements]."""
        return self._received


under_way: list[Allreduce | Alltoall] = []


def let_join_wait_for(work: Allreduce | Alltoall) -> None:
    """Let `hvd.join` wait for a collective first: a rank that joins while it takes part in one hangs all ranks.

    `hvd.join` looks its native function up at each call. Replacing that one leaves the user's `hvd.join` as it is, and
    reaches a name that was imported from it.
    """
    under_way[:] = [*(earlier for earlier in under_way if not earlier.done()), work]
    native = hvd.mpi_ops.mpi_lib
    if getattr(native.horovod_torch_join, "waits", False):
        return
    join = native.horovod_torch_join

    def join_when_done(*arguments: Any) -> Any:
        while not all(work.done() for work in under_way):
            time.sleep(1e-3)
        return join(*arguments)

    join_when_done.waits = True  # type: ignore[attr-defined]
    native.horovod_torch_join = join_when_done
