"""The connections between the workers of a Horovod job, which a worker closes when the job has failed.

Where a worker dies, those that exchange with it learn of it at once, and Horovod shuts down there. But in version
0.28.1 its global process set keeps its connections until the next start has replaced them, for `GlooContext::Finalize`
does nothing there. Another worker that waits for one of those workers would wait until Gloo's limit. It learns of the
failure at once where they close their connections.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import horovod.torch as hvd
import psutil

Link = tuple[int, Any, Any]  # the file descriptor, the address here, the address there


def links_between_workers() -> set[Link]:
    """The TCP connections whose other end another worker has; a collective.

    Those are Horovod's, and whatever else the processes of the workers have opened to each other.
    """
    own = _connections()
    ends = hvd.allgather_object([(here, there) for _, here, there in own], name="grawa.elastic.links")
    of_others = {end for rank, found in enumerate(ends) if rank != hvd.rank() for end in found}
    return {(descriptor, here, there) for descriptor, here, there in own if (there, here) in of_others}


def hang_up(links: Iterable[Link]) -> None:
    """Close those connections that are still there, at both ends; the descriptors stay whose they are."""
    for descriptor, _, _ in _connections().intersection(links):
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)


def _connections() -> set[Link]:
    """Of this process; none where the system does not tell."""
    process = psutil.Process()
    ask = getattr(process, "net_connections", None) or process.connections  # psutil 6 has renamed it
    try:
        found = ask("tcp")
    except (psutil.Error, OSError):
        return set()
    return {(one.fd, tuple(one.laddr), tuple(one.raddr)) for one in found if one.fd >= 0 and one.raddr}
