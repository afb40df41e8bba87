"""A worker of an elastic job: it trains a small model, and at the steps that the plan names something happens to it.

The plan is JSON in the environment: see `elastic_job.Plan`. What a worker sees goes into a file of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch

import grawa_hvd

PLAN: dict[str, Any] = json.loads(os.environ["GRAWA_ELASTIC_PLAN"])
FOLDER = Path(PLAN["folder"])
HOST = os.environ["HOROVOD_HOSTNAME"]
SECONDS_TO_BE_TOLD = 30

hvd.init()
START = hvd.rank()


def made() -> tuple[torch.nn.Module, Any]:
    """The model and the optimizer; every process starts elsewhere, so that what it takes over shows."""
    torch.manual_seed(os.getpid())
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    plain = torch.optim.SGD(model.parameters(), lr=0.05, momentum=PLAN["momentum"])
    if PLAN["options"] is None:
        return model, hvd.DistributedOptimizer(plain, model.named_parameters())
    return model, grawa_hvd.DistributedGrawaOptimizer(plain, model.named_parameters(), **PLAN["options"])


def die() -> None:
    """End at once, as by the kernel."""
    os.kill(os.getpid(), signal.SIGKILL)


def happen(step: int) -> None:
    """What the plan has for this worker before a step."""
    for event in PLAN["events"]:
        if event["step"] != step:
            continue
        if event["kind"] == "kill" and event["rank"] == START:
            die()
        if event["kind"] == "stop" and event["rank"] == START and not Path(FOLDER, "stopped").exists():
            Path(FOLDER, "stopped").touch()
            later = f"sleep {event['seconds']}; kill -{event['then']} {os.getpid()}"
            subprocess.Popen(["sh", "-c", later], start_new_session=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        if event["kind"] == "kill in the round" and event["rank"] == START:
            die_in_sum()
        changed = Path(FOLDER, f"changed.{step}")
        if event["kind"] == "hosts" and hvd.rank() == 0 and not changed.exists():
            changed.touch()
            Path(FOLDER, "hosts").write_text("\n".join(event["hosts"]) + "\n")
            deadline = time.monotonic() + SECONDS_TO_BE_TOLD
            while state._host_messages.empty():
                if time.monotonic() > deadline:
                    raise TimeoutError("the driver told nothing of the new hosts")
                time.sleep(0.05)


def die_in_sum() -> None:
    """End within the next sum of a model: the rows have been exchanged, and the others wait for this one."""
    transport = optimizer._transport
    sum_ = transport.sum_

    def sum_and_die(buffer: torch.Tensor, name: str) -> Any:
        if name.startswith("rows"):
            return sum_(buffer, name)
        die()

    transport.sum_ = sum_and_die


def look(moment: str) -> None:
    """Note where this worker is."""
    with torch.no_grad():
        center = getattr(optimizer, "center", None)
        if center is not None:
            center = torch.cat([c.flatten() for c in center.values()])
        seen = {
            "moment": moment, "time": time.time(), "host": HOST,
            "step": state.step, "size": hvd.size(), "rank": hvd.rank(),
            "rounds": getattr(optimizer, "rounds", None),
            "center": None if center is None else center.tolist(),
            "parameters": torch.cat([p.flatten() for p in model.parameters()]).tolist(),
        }  # fmt: skip
    # At once: a worker that Horovod removes can say nothing more.
    with Path(FOLDER, f"seen.{os.getpid()}").open("a") as file:
        file.write(json.dumps(seen) + "\n")


@hvd.elastic.run
def train(state: Any) -> None:
    """Steps until the plan's end."""
    look("start")
    while state.step < PLAN["steps"]:
        happen(state.step)
        generator = torch.Generator().manual_seed(1000 * state.step + hvd.rank())
        inputs = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), inputs[:, :3]).backward()
        optimizer.step()
        state.step += 1
        look("step")
        if state.step % PLAN["commit_every"] == 0:
            state.commit()
    look("end")


model, optimizer = made()
if PLAN["state"] == "stock":
    state = hvd.elastic.TorchState(model, optimizer, step=0)
else:
    from grawa_hvd import elastic

    state = elastic.TorchState(model, optimizer, step=0)
train(state)
