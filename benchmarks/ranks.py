"""What benchmarks of several ranks share: the ranks over a backend, and the description of the machine."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import report
from grawa_hvd.transport import horovod

TIMEOUT = timedelta(minutes=5)


class Ranks(Protocol):
    """The ranks that a benchmark was started on.

    Attributes:
        rank, size: this one's number, and how many there are; hosts: on how many hosts.
    """

    rank: int
    size: int
    hosts: int

    def allreduce_(self, tensor: Tensor, label: str) -> None:
        """Sum a tensor over the ranks, in place."""


class HorovodRanks:
    """Those of horovodrun, once Horovod is initialised."""

    def __init__(self) -> None:
        self.rank, self.size, self.hosts = hvd.rank(), hvd.size(), hvd.cross_size()

    def allreduce_(self, tensor: Tensor, label: str) -> None:
        """By Horovod, which waits for it."""
        hvd.allreduce_(tensor, op=hvd.Sum, name=label)


class TorchRanks:
    """Those of torchrun, once torch's default group is there."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.hosts = int(os.environ.get("GROUP_WORLD_SIZE", "1"))

    def allreduce_(self, tensor: Tensor, label: str) -> None:
        """By torch, which waits for it."""
        dist.all_reduce(tensor)


@contextmanager
def started(transport: str) -> Iterator[Ranks]:
    """The ranks over "horovod" or "torch", with torch's default group of them all; a collective."""
    if transport == "horovod":
        hvd.init()
        with torch_group():
            yield HorovodRanks()
        return
    dist.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield TorchRanks()
    finally:
        dist.destroy_process_group()


def environment() -> dict[str, Any]:
    """Versions, processor, and what else was going on before this began; nothing that names a host."""
    here = Namespace(device="cpu", dtype="float32", threads=torch.get_num_threads(), seconds=None)
    found = report.environment(here)
    found["versions"]["horovod"] = horovod.version()
    return {
        **found,
        "processors": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "horovod_cycle_ms": float(os.environ.get("HOROVOD_CYCLE_TIME", "1")),
    }


@contextmanager
def torch_group() -> Iterator[None]:
    """torch.distributed's group of all ranks over Gloo, beside Horovod's; a collective."""
    # Horovod was told the interface over which the hosts reach each other.
    if "HOROVOD_GLOO_IFACE" in os.environ:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", os.environ["HOROVOD_GLOO_IFACE"])
    dist.init_process_group("gloo", store=_store(), rank=hvd.rank(), world_size=hvd.size(), timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _store() -> Any:
    """The store on rank 0's host through which the ranks find each other, at a port that was free."""
    if hvd.rank() == 0:
        # The name by which horovodrun reaches this host; the other hosts know it too.
        host = os.environ.get("HOROVOD_HOSTNAME", "localhost")
        store = dist.TCPStore(host, 0, hvd.size(), True, TIMEOUT, wait_for_workers=False)
        hvd.broadcast_object((host, store.port), root_rank=0, name="bench.store")
        return store
    host, port = hvd.broadcast_object(None, root_rank=0, name="bench.store")
    return dist.TCPStore(host, port, hvd.size(), False, TIMEOUT)
