"""scripts/cluster as a user calls it, and what the machine looks like with and without a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = str(ROOT / "scripts" / "cluster")
sys.path += [str(ROOT / "scripts"), str(ROOT / "tests" / "parallel")]

from virtual_cluster import processes  # noqa: E402


def call(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run scripts/cluster to its end."""
    command = [sys.executable, CLUSTER, *arguments]
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
        "sshd": sorted(running("/run/grawa-cluster/sshd_config")),
    }
