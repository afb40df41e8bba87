"""A cluster to test in, and what the machine looks like with and without one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = str(ROOT / "scripts" / "cluster")
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests" / "parallel")]

from virtual_cluster import processes, state, system  # noqa: E402

# On a loaded machine the 12 ranks take a minute and a half to import PyTorch.
SECONDS_PER_TEST = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Unlike a thread, which ends the whole of pytest, a signal lets the fixtures take the cluster down.
        item.add_marker(pytest.mark.timeout(SECONDS_PER_TEST, method="signal"))


def call(*arguments: str, seconds: float = 120, cluster: str = CLUSTER) -> subprocess.CompletedProcess[str]:
    """Run scripts/cluster to its end."""
    command = [sys.executable, cluster, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)


def succeed(*arguments: str, seconds: float = 120) -> str:
    """Run scripts/cluster and return what it printed; fail with its errors if it fails."""
    finished = call(*arguments, seconds=seconds)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    return finished.stdout


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start scripts/cluster, to be interrupted."""
    return subprocess.Popen([sys.executable, CLUSTER, *arguments], cwd=ROOT, start_new_session=True)


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come"
        time.sleep(0.005)


def running(*words: str) -> list[int]:
    """Processes whose arguments contain these, one after the other."""
    found = []
    for pid in processes.all_processes():
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"\0".join(word.encode() for word in words) in arguments:
            found.append(pid)
    return found


def traces() -> dict[str, object]:
    """Everything that a cluster adds to the machine."""
    folders = [Path("/run/netns"), Path("/etc/netns"), Path("/run/sshd"), Path("/run/grawa-cluster")]
    return {
        "files": sorted(str(path) for folder in folders for path in folder.rglob("*")),
        "folders": [str(folder) for folder in folders[1:] if folder.exists()],
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "sshd": sorted(pid for pid in running("sshd") + running("-f") if pid in running("/run/grawa-cluster")),
    }


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips, with the reason, where this machine does not allow a cluster."""
    try:
        system.require_root()
        system.require_namespaces()
        system.install_missing()
    except system.ClusterError as error:
        pytest.skip(str(error))
    if state.load() is not None:
        pytest.fail("a cluster is up or was left unfinished; take it down first: scripts/cluster down")
    # The first namespace on a machine makes this folder, which is iproute2's.
    processes.NAMESPACES.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def unchanged(namespaces: None) -> Iterator[dict[str, object]]:
    """The machine before the test, which it must be after it too."""
    before = traces()
    try:
        yield before
        after = traces()
    finally:
        call("down")
    assert after == before


@pytest.fixture(scope="module")
def cluster(namespaces: None) -> Iterator[None]:
    """Three hosts at 1 Gbit/s, for all tests of a module."""
    try:
        succeed("up", "--hosts", "3", "--rate", "1gbit")
        yield
    finally:
        call("down")
