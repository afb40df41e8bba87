"""What benchmarks of several ranks share: torch's group beside Horovod's, and the description of the machine."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist

from benchmarks import report
from grawa_hvd.transport import horovod

TIMEOUT = timedelta(minutes=5)


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
