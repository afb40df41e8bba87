"""On a GPU: torch, which tells where the host waits for it, sees no wait in a local step and one in a round."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from devices import DEVICES
from torch import nn

import grawa_hvd
from grawa_hvd.worker import Worker

hvd = pytest.importorskip("horovod.torch")  # on a GPU machine it may be lacking
pytestmark = pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")

PERIOD = 4
OPTIONS: list[dict[str, Any]] = [
    {}, {"averaging": "grawa"}, {"averaging": grawa_hvd.LGRAWA(floor=0.5)}, {"layers": "module"},
    {"outer_momentum": 0.5}, {"compression": hvd.Compression.fp16, "fragments": 2}, {"overlap": 2},
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


@pytest.fixture(autouse=True)
def averages_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "active", True)


@contextmanager
def waits() -> Iterator[list[str]]:
    """What torch says of waits within the block."""
    found: list[str] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [str(one.message) for one in seen if "synchronizing CUDA operation" in str(one.message)]


def test_torch_tells_of_a_wait() -> None:
    one = torch.ones(1, device="cuda")
    with waits() as found:
        one.add_(1)
        float(one)
    assert len(found) == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_local_step_never_waits_and_a_round_once(options: dict[str, Any], kind: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).cuda()
    optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
        kind(model.parameters(), lr=0.01), model.named_parameters(), period=PERIOD, **{"averaging": "lgrawa", **options}
    )
    for step in range(4 * PERIOD):
        optimizer.zero_grad()
        loss = model(torch.ones(3, 4, device="cuda")).square().mean()
        loss.backward()
        before = optimizer._worker.member.rounds
        with waits() as found:
            optimizer.report(loss=loss, accuracy=loss.sigmoid(), samples=3)
            optimizer.step()
        if step > 0:  # at the first step workers meet, and torch makes the optimizer's state
            assert len(found) == optimizer._worker.member.rounds - before
    assert optimizer.rounds >= 3
