"""A worker of `benchmarks.soak`: it trains until it is told to stop, and notes each step in a file of its own.

The lines of the file are JSON. `start`: the run goes on from that step. `step`: one is done, it took so many seconds.
`commit`: what was done up to there is kept. `loss`: on data that no worker trains on. `end`: told to stop.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch

import grawa_hvd
from grawa_hvd import elastic

PLAN: dict[str, Any] = json.loads(os.environ["GRAWA_SOAK_PLAN"])
FOLDER = Path(PLAN["folder"])
# How the soak tells a worker to end in its next collective, and what ends it there.
SIGNALS = {signal.SIGUSR1: signal.SIGKILL, signal.SIGUSR2: signal.SIGSEGV}
INPUTS, OUTPUTS, HIDDEN, TEACHER = 32, 8, 256, 64
HELD_OUT = 2**40  # a seed that no step has


class Log:
    """The file that outlives the worker: each line is written at once."""

    def __init__(self) -> None:
        path = FOLDER / f"worker.{os.environ['HOROVOD_HOSTNAME']}.{os.getpid()}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, kind: str, **more: Any) -> None:
        """Add a line."""
        os.write(self._file, (json.dumps({"kind": kind, "time": time.time(), **more}) + "\n").encode())


def batch(seed: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and what the teacher makes of them: there is always more to learn, and nothing that cannot be learned."""
    inputs = torch.randn(size, INPUTS, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return inputs, teacher(inputs)


def network(hidden: int, seed: int) -> torch.nn.Module:
    """Two hidden layers."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(INPUTS, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, hidden), torch.nn.Tanh(),
        torch.nn.Linear(hidden, OUTPUTS),
    )  # fmt: skip


def made() -> tuple[Any, Any]:
    """The optimizer of the plan, and the elastic state that goes with it."""
    if PLAN["method"] == "horovod":
        optimizer = hvd.DistributedOptimizer(plain, model.named_parameters())
        return optimizer, hvd.elastic.TorchState(model, optimizer, step=0)
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        plain, model.named_parameters(), averaging="lgrawa", period=PLAN["period"]
    )
    return optimizer, elastic.TorchState(model, optimizer, step=0)


def arm(number: int, _: Any) -> None:
    """End in the next collective of the model or of its gradients, with the others in it."""
    end = SIGNALS[signal.Signals(number)]
    if PLAN["method"] == "horovod":
        optimizer.synchronize = lambda: os.kill(os.getpid(), end)  # the backward pass has begun the sums
        return
    transport = optimizer._transport
    sum_ = transport.sum_

    def sum_and_end(buffer: torch.Tensor, name: str) -> Any:
        work = sum_(buffer, name)
        if not name.startswith("rows"):
            os.kill(os.getpid(), end)
        return work

    transport.sum_ = sum_and_end


def told_to_stop() -> bool:
    """Whether any worker has been; a collective."""
    told = torch.tensor([float((FOLDER / "stop").exists())])
    return bool(hvd.allreduce(told, op=hvd.Sum, name="soak.stop") > 0)


def train_step(step: int) -> None:
    """One step on a batch that no other worker and no other step has."""
    inputs, targets = batch(step * 64 + hvd.rank(), PLAN["batch"])
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()


@torch.no_grad()
def loss(inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """This worker's own model, on one batch."""
    return float(torch.nn.functional.mse_loss(model(inputs), targets))


@hvd.elastic.run
def train(state: Any) -> None:
    """Steps, with a commit now and then, until told to stop."""
    log("start", step=state.step, size=hvd.size())
    while True:
        begin = time.perf_counter()
        train_step(state.step)
        state.step += 1
        log("step", step=state.step, seconds=time.perf_counter() - begin, size=hvd.size())
        if state.step % PLAN["commit_every"] == 0:
            if hvd.rank() == 0:
                log("loss", step=state.step, loss=loss(*held_out))
            stops = told_to_stop()
            log("commit", step=state.step)
            if stops:
                return
            state.commit()


resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
torch.set_num_threads(1)
log = Log()
teacher = network(TEACHER, seed=1)
model = network(HIDDEN, seed=0)
held_out = batch(HELD_OUT, 512)
# torch's first optimizer imports much. The others wait for this worker from its hvd.init() on.
plain = torch.optim.SGD(model.parameters(), lr=PLAN["lr"], momentum=0.9)
hvd.init()
optimizer, state = made()
for one in SIGNALS:
    signal.signal(one, arm)
train(state)
log("end", step=state.step)
