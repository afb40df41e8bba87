"""Each block of code in docs/recipes.md runs, as it is printed, on two workers."""

from __future__ import annotations

import copy
import functools
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import grawa_hvd
import grawa_hvd.optimizer
from grawa_hvd.transport.local import LocalTransport, run_workers

TEXT = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
WORKERS, STEPS = 2, 20


def run(block: str, transport: LocalTransport, start: nn.Module) -> torch.Tensor:
    """The mean of the workers after the block and some training."""
    model = copy.deepcopy(start)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(transport.rank))

    def train(optimizer: Any) -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    shared: dict[str, Any] = {
        "torch": torch, "grawa_hvd": grawa_hvd, "functools": functools, "model": model, "inner": inner, "train": train,
        "workers": WORKERS, "epochs": 3, "batches": [inputs], "loss_function": nn.functional.mse_loss,
        "held_out_inputs": torch.ones(4, 3), "held_out_targets": torch.zeros(4, 2),
    }  # fmt: skip
    if "optimizer = " not in block:  # it goes on with an optimizer
        shared["optimizer"] = grawa_hvd.DistributedGrawaOptimizer(inner, model.named_parameters(), period=500)
    exec(compile(block, "docs/recipes.md", "exec"), shared)
    train(shared["optimizer"])
    shared["optimizer"].round_now()
    with shared["optimizer"].consensus():
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0][:40] for block in BLOCKS])
def test_a_block_runs_as_it_is_printed(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    here, start = threading.local(), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    monkeypatch.setattr(grawa_hvd.optimizer, "chosen_transport", lambda *given: here.transport)

    def work(transport: LocalTransport) -> torch.Tensor:
        here.transport = transport
        return run(block, transport, start)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = run_workers(WORKERS, work)
    assert torch.equal(means[0], means[1]) and bool(means[0].isfinite().all())


def test_there_are_as_many_blocks_as_one_sees() -> None:
    assert len(BLOCKS) == TEXT.count("```python") == 10
