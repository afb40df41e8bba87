"""CUDA graphs: a step refuses to be captured, and says what to capture instead; that works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from devices import DEVICES
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.step import capture
from grawa_hvd.worker import Worker

hvd = pytest.importorskip("horovod.torch")  # on a GPU machine it may be lacking
MESSAGE = "Capture the model's forward and backward alone"
ON_CUDA = pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


@pytest.fixture
def averages_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker has nobody to average with, and no rounds to miss."""
    monkeypatch.setattr(Worker, "active", True)


def model_and_optimizer(device: str = "cpu") -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, grawa_hvd.DistributedGrawaOptimizer(optimizer, model.named_parameters(), period=2)


def train(model: Any, optimizer: Any, steps: int, batch: Tensor) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        model(batch + step).square().mean().backward()
        optimizer.step()


def test_a_captured_step_is_refused_before_anything_happens(
    averages_with_itself: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = model_and_optimizer()
    batch = torch.ones(3, 4)
    for steps in (0, 3):  # at the very first step, and in mid-run
        train(model, optimizer, steps, batch)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with monkeypatch.context() as patch:
            patch.setattr(capture, "is_capturing", lambda param_groups: True)
            with pytest.raises(RuntimeError, match=MESSAGE):
                optimizer.step()
        assert all(map(torch.equal, model.parameters(), before))
    train(model, optimizer, 1, batch)
    assert optimizer.rounds == 2  # after four steps that count


def test_one_worker_alone_may_capture_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "is_capturing", lambda param_groups: True)
    model, optimizer = model_and_optimizer()
    train(model, optimizer, 2, torch.ones(3, 4))


def test_parameters_on_a_cpu_are_not_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    model, _ = model_and_optimizer()
    assert not capture.is_capturing([{"params": []}, {"params": list(model.parameters())}])
    assert not capture.is_capturing([{"params": []}])


@ON_CUDA
@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_a_captured_step_is_refused_on_cuda(averages_with_itself: None) -> None:
    model, optimizer = model_and_optimizer("cuda")
    train(model, optimizer, 2, torch.ones(3, 4, device="cuda"))
    with pytest.raises(RuntimeError, match=MESSAGE), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    assert not capture.is_capturing(optimizer.param_groups)


@ON_CUDA
def test_what_the_message_says_trains_as_without_a_graph(averages_with_itself: None) -> None:
    batch = torch.ones(3, 4, device="cuda")
    eager, eager_optimizer = model_and_optimizer("cuda")
    train(eager, eager_optimizer, 5, batch)
    model, optimizer = model_and_optimizer("cuda")
    graphed: Any = torch.cuda.make_graphed_callables(model, (batch.clone(),))
    train(graphed, optimizer, 5, batch)
    assert optimizer.rounds == eager_optimizer.rounds == 2
    # Other algorithms of matrix products may be chosen within a graph: five steps of a few roundings each.
    for found, expected in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
