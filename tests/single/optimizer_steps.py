"""What the tests of StepTable share: an optimizer with the table of its steps, and the same steps by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grawa_hvd.ops import AdamwHyperparameters, SgdHyperparameters, StepTable

SHAPES = [(40, 30), (7,), (), (0, 3), (4, 3, 5, 5), (20001,)]
PULL = 0.125


def parameters(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
    params[4] = params[4].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(param) for param in params]


def optimizer_of(algorithm: str, params: list[Tensor]) -> torch.optim.Optimizer:
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02, "weight_decay": 0.1}]
    if algorithm == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[Any]:
    if isinstance(optimizer, torch.optim.SGD):
        return [
            SgdHyperparameters(*(group[key] for key in SgdHyperparameters._fields)) for group in optimizer.param_groups
        ]
    return [
        AdamwHyperparameters(g["lr"], *g["betas"], g["eps"], g["weight_decay"], g["maximize"])
        for g in optimizer.param_groups
    ]


class Setup:
    """An optimizer with the table of its steps, centers of its parameters, and a row for each norm."""

    def __init__(self, algorithm: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.params = parameters(device, dtype)
        self.optimizer = optimizer_of(algorithm, self.params)
        self.table = StepTable(algorithm, self.params, [0, 0, 1, 1, 1, 1])  # type: ignore[arg-type]
        self.norms = torch.full((len(SHAPES) + 1,), 5.0, device=device)
        self.rows = [3, -1, 0, 1, 4, 5]
        self.centers = [torch.linspace(-1, 1, param.numel(), device=device, dtype=dtype) for param in self.params]
        self.table.set_targets(self.rows, self.centers, [param.stride() for param in self.params])

    def set_grads(self, seed: int, missing: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(seed)
        for index, param in enumerate(self.params):
            grad = torch.randn(param.shape, generator=generator).to(param)
            param.grad = None if index in missing else torch.empty_like(param).copy_(grad)

    def step(self, **options: Any) -> bool:
        arguments = {"pull": PULL, "norms": self.norms, **options}
        return self.table.step(self.optimizer.state, hyperparameters(self.optimizer), **arguments)

    def step_by_torch(self) -> None:
        self.optimizer.step()
        with torch.no_grad():
            for param, center in zip(self.params, self.centers, strict=True):
                param.lerp_(center.as_strided(param.shape, param.stride()), PULL)

    def move_counts(self, device: str) -> None:
        """AdamW's counts of steps to that of the parameters, where a capturable optimizer has them, or back."""
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].to(device)

    def tensors(self) -> list[Tensor]:
        states = [self.optimizer.state.get(param, {}) for param in self.params]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [tensor.detach().clone() for tensor in (*self.params, *tensors, self.norms)]


def assert_same(ours: Setup, theirs: Setup) -> None:
    for mine, want in zip(ours.params, theirs.params, strict=True):
        # Up to six roundings a step, of values up to 4, over ten steps.
        torch.testing.assert_close(mine, want, rtol=0, atol=256 * torch.finfo(mine.dtype).eps)
    for param, other in zip(ours.params, theirs.params, strict=True):
        mine, want = ours.optimizer.state.get(param, {}), theirs.optimizer.state.get(other, {})
        assert list(mine) == list(want)
        for key, value in mine.items():
            assert (value.dtype, value.shape, value.stride()) == (want[key].dtype, want[key].shape, want[key].stride())
            allowed = 256 * torch.finfo(value.dtype).eps
            torch.testing.assert_close(value, want[key], rtol=0, atol=allowed, check_device=False)
