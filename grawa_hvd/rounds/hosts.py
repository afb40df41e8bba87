"""Who is on which host: the workers of one host average among themselves every `local_period` steps."""

from __future__ import annotations

from dataclasses import dataclass

from grawa_hvd.rounds.agreement import gather_bytes
from grawa_hvd.transport.base import Transport


@dataclass(frozen=True)
class HostGroup:
    """The workers of one host: their transport, and their ranks among all workers."""

    transport: Transport
    workers: list[int]


def within_host(transport: Transport) -> HostGroup:
    """This worker's host; a collective of all workers.

    Raises:
        ValueError: if the backend was started without what groups need.
    """
    names = gather_bytes(transport.host().encode(), transport, "hosts")
    hosts = [[worker for worker in range(transport.size) if names[worker] == host] for host in dict.fromkeys(names)]
    # Every rank makes the groups of all hosts, in one order.
    groups = [HostGroup(transport.subgroup(workers), workers) for workers in hosts]
    return next(group for group in groups if transport.rank in group.workers)
