"""The connections between workers, which a worker closes after a failure."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import peers
import pytest
from models import from_all

pytestmark = pytest.mark.horovod


@contextmanager
def pair_of_this_process() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection that no other worker has."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        there = stack.enter_context(socket.create_connection(listening.getsockname()))
        here = stack.enter_context(listening.accept()[0])
        yield here, there


@contextmanager
def to_the_other_worker(rank: int) -> Iterator[socket.socket]:
    """This rank's end of a connection between ranks 0 and 1."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = peers.gather_objects(listening.getsockname())[0]
        if rank == 0:
            yield stack.enter_context(listening.accept()[0])
        else:
            yield stack.enter_context(socket.create_connection(address))


@pytest.mark.ranks(2)
def test_what_workers_share_is_found_and_closed_at_both_ends(rank: int) -> None:
    from grawa_hvd.transport.horovod_links import hang_up, links_between_workers  # noqa: PLC0415 (torch runs lack it)

    with to_the_other_worker(rank) as shared, pair_of_this_process() as (here, there):
        found = links_between_workers()
        descriptors = {descriptor for descriptor, _, _ in found}
        assert shared.fileno() in descriptors
        assert len(descriptors) > 1  # Horovod's own
        assert not {here.fileno(), there.fileno()} & descriptors

        for blocking in (shared, here, there):
            blocking.settimeout(20)
        from_all(0)
        if rank == 0:
            hang_up(link for link in found if link[0] == shared.fileno())
        assert shared.recv(1) == b""
        there.sendall(b"1")
        assert here.recv(1) == b"1"


@pytest.mark.ranks(2)
def test_a_descriptor_that_is_another_connection_by_now_is_left_alone(rank: int) -> None:
    from grawa_hvd.transport.horovod_links import hang_up  # noqa: PLC0415

    with pair_of_this_process() as (here, there):
        hang_up([(here.fileno(), ("127.0.0.1", 1), ("127.0.0.1", 2))])
        there.sendall(b"1")
        here.settimeout(20)
        assert here.recv(1) == b"1"
