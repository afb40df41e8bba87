"""What is written down of a cluster, so that any later command, even after a kill -9, knows what is to be removed."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .system import ClusterError

# On a file system that a reboot empties, as it does away with namespaces.
FOLDER = Path("/run/grawa-cluster")
RECORD = FOLDER / "state.json"
# The bridge has a namespace of its own: the machine's interfaces, routes and firewall are neither used nor touched.
SWITCH = "grawa-switch"
NETWORK = "10.77.0"
MOST_HOSTS = 64


@dataclass
class State:
    """A cluster, from before the first of its parts is made until after the last is gone.

    Attributes:
        hosts: names of its hosts, which are those of their namespaces.
        rates: each host's rate as tc writes it, or "none".
        sshd: process id of each host's sshd.
        made: folders that were not there before.
        ready: whether it has come up whole.
    """

    hosts: list[str]
    rates: dict[str, str] = field(default_factory=dict)
    sshd: dict[str, int] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    ready: bool = False

    def save(self) -> None:
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        staged = RECORD.with_suffix(".new")
        staged.write_text(json.dumps(asdict(self), indent=1) + "\n")
        staged.replace(RECORD)

    def address(self, host: str) -> str:
        return f"{NETWORK}.{self.hosts.index(host) + 1}"

    def make_folder(self, folder: Path) -> None:
        """Make a folder that others may use too; remembered if it was not there."""
        if not folder.exists():
            self.made.append(str(folder))
            self.save()
            folder.mkdir(parents=True)


def load() -> State | None:
    """The cluster of this machine, whole or not; None if there is none."""
    if not RECORD.exists():
        return None
    return State(**json.loads(RECORD.read_text()))


def load_ready() -> State:
    """The cluster that is up.

    Raises:
        ClusterError: if there is none, or an interrupted `up` left it unfinished.
    """
    state = load()
    if state is None:
        raise ClusterError("no cluster is up; `scripts/cluster up` makes one")
    if not state.ready:
        raise ClusterError("`scripts/cluster up` was interrupted; run it again, or `scripts/cluster down`")
    return state


def forget() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)


@contextmanager
def locked() -> Iterator[None]:
    """One `up`, `down` or `rate` at a time.

    An abstract socket: it is no file that would stay behind, and the system drops it with the process.

    Raises:
        ClusterError: at once, if another is at it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind("\0grawa-cluster")
        except OSError:
            raise ClusterError("another `scripts/cluster` is changing the cluster; try again when it is done") from None
        yield
