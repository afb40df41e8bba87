"""Whether this machine is ready for a run: what is installed, the network, peers, settings; exit code 1 if not."""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable

import torch

from grawa_hvd import installation
from grawa_hvd.doctor import environment, network, parts, peers
from grawa_hvd.doctor.finding import FAIL, Finding, report

__all__ = ["Finding", "add_arguments", "examine", "run"]


def examine(others: list[tuple[str, int]], ranks: int, timeout: float) -> list[Finding]:
    """All checks, on this host and from it.

    Args:
        others: host and port of each peer to reach.
        ranks: of this host.
        timeout: seconds to wait for each peer.
    """
    found = installation.inspect()
    processors = len(os.sched_getaffinity(0))
    return [
        *parts.check(found, [torch.cuda.get_device_capability(number) for number in range(found.devices)]),
        *network.check(network.inspect(), os.environ),
        *environment.check(os.environ, ranks, torch.get_num_threads(), processors, found.devices),
        *(peers.check(host, port, timeout) for host, port in others),
    ]


def _peer(text: str) -> tuple[str, int]:
    try:
        return peers.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m grawa_hvd doctor`."""
    add = parser.add_argument
    add("--peers", nargs="+", type=_peer, default=[], metavar="HOST:PORT",
        help="connect to each, by TCP; port 22 is ssh's, which horovodrun starts ranks by")  # fmt: skip
    add("--timeout", type=float, default=3.0, metavar="SECONDS", help="for each peer (default: %(default)s)")
    add("--ranks-per-host", type=int, default=environment.ranks_of_host(os.environ), metavar="N",
        help="how many ranks this host will have (default: as horovodrun or torchrun say, else 1)")  # fmt: skip


def run(given: argparse.Namespace, fail: Callable[[str], None]) -> int:
    """Print what was found; `fail` ends the program with a message about the arguments."""
    if not 0 < given.timeout < threading.TIMEOUT_MAX:
        fail(f"--timeout must be above 0, but is {given.timeout:g}")
    if given.ranks_per_host < 1:
        fail(f"--ranks-per-host must be 1 or more, but is {given.ranks_per_host}")
    found = examine(given.peers, given.ranks_per_host, given.timeout)
    print(report(found))
    return int(any(finding.level == FAIL for finding in found))
