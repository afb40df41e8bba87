"""`torchrun --nnodes 1:2`: a node joins and is lost again, and each time the run goes on from the last checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
from faults import Note

SECONDS = 90  # for each of the three worlds to come about; some ten on an idle machine


class Nodes:
    """Agents of torchrun on this machine, a node with one worker each."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder, self.mark, self.agents = folder, folder.name + str(os.getpid()), list[subprocess.Popen[bytes]]()

    def add(self) -> None:
        """Start another node."""
        environment = {**os.environ, processes.MARK: self.mark, "OMP_NUM_THREADS": "1"}
        with (self._folder / "output").open("a") as output:
            self.agents.append(subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1",
                 "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self._port}", "--rdzv-id", self.mark,
                 "--rdzv-conf", "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=5",
                 "--local-addr", "127.0.0.1", "--max-restarts", "3", "--monitor-interval", "0.2",
                 str(Path(__file__).with_name("train_nodes.py")), str(self._folder)],
                env={**environment, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, stdout=output, stderr=output,
                start_new_session=True,
            ))  # fmt: skip

    def lose(self) -> None:
        """Take the last node away, as by a power cut."""
        agent = self.agents.pop()
        workers = [child.pid for child in psutil.Process(agent.pid).children(recursive=True)]
        processes.kill([agent.pid, *workers])
        agent.wait()

    def seen(self, **what: Any) -> list[dict[str, Any]]:
        """What workers have noted, from the earliest on, of which all this holds."""
        lines = [line for file in self._folder.glob("seen.*") for line in file.read_text().splitlines()]
        found = sorted(map(json.loads, lines), key=lambda one: one["time"])
        return [one for one in found if what.items() <= one.items()]

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Wait, while no agent ends."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            said = (self._folder / "output").read_text()[-4000:]
            assert time.monotonic() < deadline and all(agent.poll() is None for agent in self.agents), said
            time.sleep(0.1)

    def end(self) -> None:
        """Kill what is left."""
        processes.kill(processes.left(self.mark, seconds=0))
        for agent in self.agents:
            agent.wait()


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    started = Nodes(tmp_path)
    yield started
    started.end()


@pytest.mark.quick
def test_a_node_joins_and_is_lost(nodes: Nodes, tmp_path: Path, fault: Note) -> None:
    fault("a node is added", "torchrun --nnodes 1:2")
    fault("a node and its agent are killed", "torchrun --nnodes 1:2")
    nodes.add()
    nodes.wait_until((tmp_path / "run.pt").exists)
    nodes.add()
    nodes.wait_until(lambda: len(nodes.seen(moment="start", world=2)) == 2)
    both = nodes.seen(moment="start", world=2)
    saved = (tmp_path / "run.pt").stat().st_mtime_ns
    nodes.wait_until(lambda: (tmp_path / "run.pt").stat().st_mtime_ns > saved)
    (tmp_path / "last").touch()
    nodes.lose()
    assert nodes.agents[0].wait(SECONDS) == 0, (tmp_path / "output").read_text()[-4000:]

    assert nodes.seen(moment="start")[0]["step"] == 0
    assert both[0]["step"] == both[1]["step"] >= 5
    assert both[0]["weight"] == both[1]["weight"]
    (end,) = nodes.seen(moment="end")
    last = nodes.seen(moment="start")[-1]
    assert (last["world"], end["step"]) == (1, last["step"] + 20)
    assert last["step"] > both[0]["step"]
    assert last["step"] % 5 == both[0]["step"] % 5 == 0
    # Alone, a worker has no rounds; together they have one each 4 steps, and what is taken up is a multiple of 5.
    assert last["rounds"] > both[0]["rounds"] == 0
    assert processes.left(nodes.mark, seconds=10) == []
