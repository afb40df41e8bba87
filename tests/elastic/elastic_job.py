"""Elastic jobs under Horovod's own launcher, on the hosts localhost and 127.0.0.1 of this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


@dataclass
class Plan:
    """What happens in a job.

    Attributes:
        hosts: at the start, as "localhost:2".
        events: each a dict with "kind", "step" and more; see `train.happen`.
        state: "own" for grawa_hvd.elastic.TorchState, "stock" for Horovod's.
        options: of the optimizer.
    """

    hosts: list[str]
    events: list[dict[str, Any]]
    steps: int = 20
    commit_every: int = 1
    momentum: float = 0.0
    state: str = "own"
    options: dict[str, Any] = field(default_factory=lambda: {"averaging": "uniform", "period": 3})
    arguments: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """How a job ended: the launcher's exit code and output, and what each worker noted that came to an end."""

    code: int
    output: str
    workers: list[dict[str, Any]]
    left: list[int]

    def ends(self) -> list[dict[str, Any]]:
        """What the workers saw that finished the run."""
        return [one["seen"][-1] for one in self.workers if one["seen"] and one["seen"][-1]["moment"] == "end"]


def run(plan: Plan) -> Outcome:
    """Launch a job and wait for its end.

    Raises:
        TimeoutError: if it takes longer than `SECONDS`; its processes are ended then.
    """
    folder = Path(tempfile.mkdtemp(prefix="grawa-elastic-"))
    try:
        return _run(plan, folder)
    finally:
        shutil.rmtree(folder)


def _run(plan: Plan, folder: Path) -> Outcome:
    (folder / "hosts").write_text("\n".join(plan.hosts) + "\n")
    script = folder / "discover.sh"
    script.write_text(f"#!/bin/sh\ncat {folder / 'hosts'}\n")
    script.chmod(0o755)
    size = sum(int(host.partition(":")[2]) for host in plan.hosts)
    launcher = [sys.executable, str(Path(__file__).parent / "launch.py"), "-np", str(size), "--min-np", "1"]
    launcher += ["--max-np", "4", "--host-discovery-script", str(script), *plan.arguments]
    mark = folder.name  # in the environment of all that the job starts
    environment = {
        **os.environ, "GRAWA_ELASTIC_PLAN": json.dumps({**vars(plan), "folder": str(folder)}),
        "GRAWA_ELASTIC_MARK": mark, "HOROVOD_GLOO_TIMEOUT_SECONDS": "20", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with (folder / "output").open("w+") as output:
        process = subprocess.Popen(
            [*launcher, sys.executable, str(Path(__file__).parent / "train.py")], cwd=ROOT, env=environment,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        ended = process.returncode is not None
        left = _left(mark, seconds=10 if ended else 0)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        said = output.read()
    if not ended:
        raise TimeoutError(f"the job was not done after {SECONDS} s:\n{said[-6000:]}")
    workers = [json.loads(file.read_text()) for file in folder.glob("seen.*")]
    return Outcome(process.returncode, said, workers, left)


def _left(mark: str, seconds: float) -> list[int]:
    """Processes of a job that are still there after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("GRAWA_ELASTIC_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
