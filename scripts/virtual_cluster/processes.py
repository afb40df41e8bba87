"""Which processes belong to a host or to one `exec`, and how they end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

NAMESPACES = Path("/run/netns")
# Given to all that an `exec` starts, and passed on by ssh to the other hosts.
RUN_VARIABLE = "GRAWA_CLUSTER_RUN"
# horovodrun takes 5 s to end its workers.
SECONDS_TO_END = 8.0
SECONDS_TO_KILL = 5.0


def all_processes() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())


def in_namespace(pid: int, name: str) -> bool:
    """Whether a process has the network of a namespace; False if either is gone."""
    try:
        return Path(f"/proc/{pid}/ns/net").samefile(NAMESPACES / name)
    except OSError:
        return False


def of_namespace(name: str) -> list[int]:
    return [pid for pid in all_processes() if in_namespace(pid, name)]


def with_argument(start: str) -> list[int]:
    """Processes that have an argument which begins so."""
    mark = b"\0" + start.encode()
    found = []
    for pid in all_processes():
        with suppress(OSError):
            if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def of_run(token: str) -> list[int]:
    """What an `exec` started, on whichever host: the token is in its environment."""
    mark = f"{RUN_VARIABLE}={token}".encode()
    found = []
    for pid in all_processes():
        with suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def end(find: Callable[[], list[int]], seconds: float = SECONDS_TO_END) -> None:
    """Ask the processes that `find` names to end, and kill what it names after `seconds`."""
    _signal(find(), signal.SIGTERM)
    if _gone(find, seconds):
        return
    deadline = time.monotonic() + SECONDS_TO_KILL
    while time.monotonic() < deadline:
        _signal(find(), signal.SIGKILL)
        if _gone(find, 0.2):
            return


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _gone(find: Callable[[], list[int]], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while find():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
