"""What the tests of the local steps share: tensors of every layout, and torch's own optimizers to compare with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from devices import values, wire
from torch import Tensor

STEPS = 4
PULL = 0.3
Factory = Callable[[list[Tensor]], torch.optim.Optimizer]


def layouts(dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """Several chunks, dense in several orders, unaligned, with gaps, 0-dim, empty."""
    memory = values(3000, dtype, device, seed)
    image = values(2 * 3 * 5 * 5, dtype, device, seed + 1).view(2, 3, 5, 5)
    return [
        values(33001, dtype, device, seed + 2),
        values(1023, dtype, device, seed + 3),
        image.to(memory_format=torch.channels_last),
        image.clone().permute(3, 1, 0, 2),
        memory[1:30],
        memory[100:].view(50, 58)[:, 1:50:2],
        memory[60],
        values(0, dtype, device),
    ]


def gradients(params: list[Tensor], step: int) -> list[Tensor]:
    return [
        values(param.numel(), param.dtype, str(param.device), seed=100 + 10 * step + index).view(param.shape)
        for index, param in enumerate(params)
    ]


def flat_center(params: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A center as it lies, and its part for each parameter in the shape of that."""
    parts = [torch.empty_like(param).copy_(grad) for param, grad in zip(params, gradients(params, 50), strict=True)]
    return torch.cat([wire(part) for part in parts]), parts


@dataclass
class Trajectory:
    """Parameters after some steps of a torch optimizer, each followed by the pull."""

    optimizer: torch.optim.Optimizer
    params: list[Tensor]
    states: dict[str, list[Tensor]] = field(default_factory=dict)

    def state(self, name: str) -> list[Tensor]:
        return [self.optimizer.state[param][name] for param in self.params]


def by_torch(factory: Factory, start: list[Tensor], dtype: torch.dtype, steps: int = STEPS, pull: float = PULL) -> Any:
    """Steps a copy in another dtype, with the gradients and the center of the original."""
    params = [torch.empty_like(tensor, dtype=dtype).copy_(tensor) for tensor in start]
    optimizer = factory(params)
    _, centers = flat_center(start)
    for step in range(steps):
        for param, grad in zip(params, gradients(start, step), strict=True):
            param.grad = grad.to(dtype)
        optimizer.step()
        for param, center in zip(params, centers, strict=True):
            param.lerp_(center.to(dtype), pull)
    return Trajectory(optimizer, params)


def assert_as_exact_as_torch(ours: list[Tensor], by_torch: list[Tensor], wanted: list[Tensor]) -> None:
    """At most the largest error that torch makes in the same dtype, and two roundings of the largest value a step."""
    for mine, theirs, want in zip(ours, by_torch, wanted, strict=True):
        if want.numel() == 0:
            continue
        rounding = 2 * STEPS * torch.finfo(mine.dtype).eps * want.abs().max()
        allowed = (theirs.double() - want).abs().max() + rounding
        assert (mine.double() - want).abs().max() <= allowed
