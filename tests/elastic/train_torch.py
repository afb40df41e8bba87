"""A worker under torchrun that takes its run up from the last checkpoint, and is killed once: `FOLDER RANK STEP`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import grawa_hvd
from grawa_hvd import checkpoint

folder, victim, at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
rank, attempt = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer = grawa_hvd.DistributedGrawaOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), model.named_parameters(), period=4
)
step = start = checkpoint.load(folder / "run.pt", model, optimizer)["step"] if (folder / "run.pt").exists() else 0
while step < 20:
    if (attempt, rank, step) == (0, victim, at):
        os.kill(os.getpid(), signal.SIGKILL)
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * step + rank))
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), inputs[:, :2]).backward()
    optimizer.step()
    step += 1
    if step % 5 == 0:
        checkpoint.save(folder / "run.pt", model, optimizer, step=step)
said = {"start": start, "rounds": optimizer.rounds, "weight": model.weight.tolist()}
(folder / f"end.{rank}").write_text(json.dumps(said))
dist.destroy_process_group()
