"""Scaled gradients, where the step is left to torch: divided by the scale in few calls, however many they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from devices import DEVICES, DTYPES, values
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from grawa_hvd.step import amp

SCALE = 2.0**16


class Calls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count[str(func)] += 1
        return func(*args, **kwargs or {})


def sgd(gradients: list[Tensor]) -> torch.optim.SGD:
    parameters = [torch.zeros_like(gradient.to_dense()).requires_grad_() for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return torch.optim.SGD(parameters, lr=0.1)


def gradients_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter.grad.to_dense() for group in optimizer.param_groups for parameter in group["params"]]


@pytest.mark.parametrize("device", DEVICES)
def test_a_scale_is_divided_out_of_gradients_of_every_kind(device: str) -> None:
    dense = [values(size, dtype, device, seed=size) * 1000 for dtype in DTYPES for size in (1, 7, 70001)]
    permuted = values(12, torch.float32, device).reshape(3, 4).t()
    sparse = torch.sparse_coo_tensor([[0, 2, 2]], values(3, torch.float32), (4,), check_invariants=True).to(device)
    optimizer = sgd([*dense, permuted, sparse])
    before = [gradient.clone() for gradient in gradients_of(optimizer)]
    amp.unscale_(optimizer, torch.tensor(SCALE, device=device))
    # Dividing by a power of two rounds nothing but what is subnormal in float16, and that once.
    for found, old in zip(gradients_of(optimizer), before, strict=True):
        assert torch.equal(found, (old.double() / SCALE).to(old.dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_many_gradients_are_unscaled_as_grad_scaler_does_in_one_call(device: str) -> None:
    gradients = [values(1 + size, torch.float32, device, seed=size) for size in range(100)]
    ours, torchs = sgd(gradients), sgd(gradients)
    scaler = torch.amp.GradScaler(device, init_scale=1000.0)
    scale = scaler.scale(torch.ones((), device=device))
    scaler.unscale_(torchs)
    with Calls() as calls:
        amp.unscale_(ours, scale)
    assert all(map(torch.equal, gradients_of(ours), gradients_of(torchs)))
    # The reciprocal, the call, and what it wants besides.
    assert calls.count.total() < 10


def test_without_a_scale_gradients_stay_as_they_are() -> None:
    optimizer = sgd([torch.ones(3)])
    amp.unscale_(optimizer, None)
    assert torch.equal(gradients_of(optimizer)[0], torch.ones(3))
