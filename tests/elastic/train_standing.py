"""A worker that stands still when it is told to: `horovod|torch FOLDER step|round [cut|raise|exit|kill]`.

Rank 1 stops itself at the 8th step; or else it takes the network interface of its host down, raises, exits as if it
were done, or kills itself. Who is done writes a file with its parameters, who fails one with the error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

import grawa_hvd

transport, folder, place = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
how = sys.argv[4] if len(sys.argv) > 4 else "stop"
TIMEOUT = int(os.environ["HOROVOD_GLOO_TIMEOUT_SECONDS"])
if transport == "horovod":
    import horovod.torch as hvd

    hvd.init()
    rank = hvd.rank()
else:
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    rank = dist.get_rank()

torch.manual_seed(0)
model = torch.nn.Linear(4, 2)
optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
    torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), model.named_parameters(), period=5
)


def stand_still() -> None:
    """Until SIGCONT; or go on, without a network; or end."""
    (folder / "stopped").write_text(str(os.getpid()))
    if how == "cut":
        subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)
    elif how == "raise":
        raise KeyError("no batch left")
    elif how == "exit":
        sys.exit(0)
    else:
        os.kill(os.getpid(), {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[how])


def stand_still_in_sum() -> None:
    """Within the next sum of a model, after the rows have been exchanged."""
    sum_ = optimizer._transport.sum_

    def slow_sum(buffer: torch.Tensor, name: str) -> Any:
        if not name.startswith("rows"):
            optimizer._transport.sum_ = sum_
            stand_still()
        return sum_(buffer, name)

    optimizer._transport.sum_ = slow_sum


def train() -> None:
    """20 steps."""
    for step in range(20):
        if (rank, step) == (1, 7):
            {"step": stand_still, "round": stand_still_in_sum}[place]()
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(100 * step + rank))
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(inputs), inputs[:, :2]).backward()
        optimizer.step()


try:
    train()
except Exception as error:
    (folder / f"error.{rank}").write_text(f"{type(error).__name__}: {error}")
    raise
(folder / f"end.{rank}").write_text(json.dumps(model.weight.tolist()))
if transport == "torch":
    dist.destroy_process_group()
