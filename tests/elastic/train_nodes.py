"""A worker of an elastic torchrun job: it takes its run up from the last checkpoint, and trains until it is ended.

`FOLDER`. Once the file `last` is there, a worker that starts makes 20 steps more and comes to an end. What each saw at
its start and at its end goes into a file of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import grawa_hvd
from grawa_hvd import checkpoint

MOST = 10_000  # steps, should nobody end it
folder = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), model.named_parameters(), period=4
)
path = folder / "run.pt"
step = checkpoint.load(path, model, optimizer)["step"] if path.exists() else 0


def look(moment: str) -> None:
    """Note where this worker is."""
    seen = {"moment": moment, "step": step, "world": dist.get_world_size(), "rank": rank, "rounds": optimizer.rounds}
    with (folder / f"seen.{os.getpid()}").open("a") as file:
        file.write(json.dumps({**seen, "weight": model.weight.tolist(), "time": time.time()}) + "\n")


look("start")
end = step + 20 if (folder / "last").exists() else MOST
while step < end:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * step + rank))
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), inputs[:, :2]).backward()
    optimizer.step()
    step += 1
    if step % 5 == 0:
        checkpoint.save(path, model, optimizer, step=step)
look("end")
dist.destroy_process_group()
