"""`torchrun --nnodes 1:3`: nodes join and are lost again, and each time the run goes on from the last checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import processes
import psutil
import pytest
from faults import Note

SECONDS = 90  # for each world to come about; some ten on an idle machine


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
                [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:3", "--nproc-per-node", "1",
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
def test_nodes_join_and_are_lost(nodes: Nodes, tmp_path: Path, fault: Note) -> None:
    for _ in range(2):
        fault("a node is added", "torchrun --nnodes 1:3")
        fault("a node and its agent are killed", "torchrun --nnodes 1:3")

    def checkpointed_again() -> bool:
        return (tmp_path / "run.pt").stat().st_mtime_ns > saved

    nodes.add()
    nodes.wait_until((tmp_path / "run.pt").exists)
    for world in (2, 3):
        nodes.add()
        nodes.wait_until(lambda world=world: len(nodes.seen(moment="start", world=world)) == world)
        saved = (tmp_path / "run.pt").stat().st_mtime_ns
        nodes.wait_until(checkpointed_again)
    nodes.lose()
    nodes.wait_until(lambda: len(nodes.seen(moment="start", world=2)) == 4)
    saved = (tmp_path / "run.pt").stat().st_mtime_ns
    nodes.wait_until(checkpointed_again)
    (tmp_path / "last").touch()
    nodes.lose()
    assert nodes.agents[0].wait(SECONDS) == 0, (tmp_path / "output").read_text()[-4000:]

    starts = nodes.seen(moment="start")
    worlds = [[*group] for _, group in groupby(starts, key=lambda one: (one["world"], one["step"]))]
    assert [len(world) for world in worlds] == [1, 2, 3, 2, 1]
    assert all(one["weight"] == world[0]["weight"] for world in worlds for one in world)
    steps = [world[0]["step"] for world in worlds]
    assert steps[0] == 0 < steps[1] < steps[2] < steps[3] < steps[4]
    assert all(step % 5 == 0 for step in steps)  # what is taken up is a checkpoint
    (end,) = nodes.seen(moment="end")
    assert end["step"] == steps[4] + 20
    # Alone, a worker has no rounds; together they have one each 4 steps.
    rounds = [world[0]["rounds"] for world in worlds]
    assert rounds[0] == rounds[1] == 0 < rounds[2] < rounds[3] < rounds[4]
    assert processes.left(nodes.mark, seconds=10) == []
