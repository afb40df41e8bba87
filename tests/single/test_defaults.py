"""torch's default device and default dtype are the user's, and nothing of this package's depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd import averaging
from grawa_hvd.transport.local import LocalTransport, run_workers

OPTIONS = [
    {}, {"averaging": "uniform", "outer_momentum": 0.5}, {"overlap": 1}, {"fragments": 2}, {"layers": "module"},
    {"compression": grawa_hvd.Compression.fp16}, {"optimizer_state": "average"}, {"warmup_steps": 2},
    {"averaging": averaging.EDiT()}, {"averaging": averaging.LSGD()}, {"averaging": averaging.DPPF()},
    {"averaging": averaging.MedianCap()}, {"averaging": averaging.EASGD()},
    {"averaging": averaging.Weighted(by="loss")}, {"averaging": averaging.Decentralized("ring"), "proximity": 0.0},
]  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def work(transport: LocalTransport, options: dict[str, Any], device: str) -> list[torch.Tensor]:
    """A script's life on the CPU, in float32, while tensors are made elsewhere unless it is said where."""
    model = nn.Linear(3, 2, device="cpu", dtype=torch.float32)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    x = torch.full((2, 3), 1.0 + transport.rank, device="cpu", dtype=torch.float32)
    with torch.device(device):
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5), model.named_parameters(),
            process_group=transport, **{"averaging": "lgrawa", "period": 3, "proximity": 0.1, **options},
        )  # fmt: skip
        for step in range(10):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.report(loss=loss.detach())
            optimizer.step()
            if step == 4:
                optimizer.load_state_dict(optimizer.state_dict())
        with optimizer.consensus("last"):
            pass
        optimizer.round_now()
    return [parameter.detach() for parameter in model.parameters()]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.bfloat16)])  # meta: as a GPU is
def test_training_is_the_same_whatever_they_are(options: dict[str, Any], device: str, dtype: torch.dtype) -> None:
    expected = run_workers(2, lambda transport: work(transport, options, "cpu"))
    with default_dtype(dtype):
        found = run_workers(2, lambda transport: work(transport, options, device))
    assert all(torch.equal(x, y) for ours, theirs in zip(found, expected, strict=True)
               for x, y in zip(ours, theirs, strict=True))  # fmt: skip
