"""What the hosts' own interfaces count: the bytes that really went over the wire."""

from __future__ import annotations

from pathlib import Path

import horovod.torch as hvd
import torch
import torch.distributed as dist


class Wire:
    """Bytes that all hosts together have sent; every method is called by all ranks.

    Args:
        interface: of every host, such as eth0.
    """

    def __init__(self, interface: str) -> None:
        self._counter = Path("/sys/class/net", interface, "statistics", "tx_bytes")
        self._start = 0
        # One rank of a host speaks for it.
        self._speaks = hvd.local_rank() == 0

    def start(self) -> None:
        """Count from here on: nobody goes on before all have read."""
        dist.barrier()
        self._start = self._read()
        dist.barrier()

    def sent(self) -> int:
        """By this host since `start`, once every rank has come here; 0 on ranks that do not speak for their host."""
        dist.barrier()
        return self._read() - self._start

    def _read(self) -> int:
        return int(self._counter.read_text()) if self._speaks else 0


def over_hosts(sent: list[int]) -> list[int]:
    """What `Wire.sent` returned, summed over the hosts; a collective."""
    total = torch.tensor(sent, dtype=torch.int64)
    dist.all_reduce(total)
    summed: list[int] = total.tolist()
    return summed
