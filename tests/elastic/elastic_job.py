"""Elastic jobs under Horovod's own launcher, on the hosts localhost and 127.0.0.1 of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import processes

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240  # that a job may take; a minute on an idle machine


@dataclass
class Plan:
    """What happens in a job.

    Attributes:
        hosts: at the start, as "localhost:2".
        events: each a dict with "kind", "step" and more; see `train.happen`.
        state: "own" for grawa_hvd.elastic.TorchState, "stock" for Horovod's.
        options: of the optimizer; None: hvd.DistributedOptimizer.
        arguments: of horovodrun.
        gloo_timeout: seconds after which a worker gives up one that has died, or a new one that still imports PyTorch.
    """

    hosts: list[str]
    events: list[dict[str, Any]]
    steps: int = 20
    commit_every: int = 1
    momentum: float = 0.0
    state: str = "own"
    options: dict[str, Any] | None = field(default_factory=lambda: {"averaging": "uniform", "period": 3})
    arguments: list[str] = field(default_factory=list)
    gloo_timeout: int = 20


@dataclass
class Outcome:
    """How a job ended: the launcher's exit code and output, and what each worker noted."""

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
        processes.MARK: mark, "HOROVOD_GLOO_TIMEOUT_SECONDS": str(plan.gloo_timeout), "OMP_NUM_THREADS": "1",
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
        left = processes.left(mark, seconds=10 if ended else 0)
        processes.kill(left)
        process.wait()
        output.seek(0)
        said = output.read()
    if not ended:
        raise TimeoutError(f"the job was not done after {SECONDS} s:\n{said[-6000:]}")
    workers = [{"seen": list(map(json.loads, file.read_text().splitlines()))} for file in folder.glob("seen.*")]
    return Outcome(process.returncode, said, workers, left)
