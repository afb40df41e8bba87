"""What the tests of the local steps' kernels share: layers of every layout, and their steps beside the reference."""

from __future__ import annotations

from typing import Any

import reference_step
import torch
from devices import values
from reference_step import Hyperparameters, Tensors
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import AdamwHyperparameters, SgdHyperparameters, StepTable

PULL = 0.3
SGD = SgdHyperparameters(0.125, momentum=0.9, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False)
ADAMW = AdamwHyperparameters(0.0625, beta1=0.9, beta2=0.999, eps=1e-4, weight_decay=0.0, maximize=False)
COUNTS = (0.0, 1.0, 30.0, 1000.0)


def layouts(dtype: torch.dtype, device: str) -> list[Tensor]:
    """Several chunks, an odd size, dense in several orders, unaligned, 0-dim, empty."""
    memory = values(100, dtype, device)
    image = values(2 * 3 * 5 * 5, dtype, device, seed=1).view(2, 3, 5, 5)
    return [
        values(33001, dtype, device, seed=2),
        values(1023, dtype, device, seed=3),
        image.to(memory_format=torch.channels_last),
        image.clone().permute(3, 1, 0, 2),
        memory[1:30],
        memory[60],
        values(0, dtype, device),
    ]


def in_order_of(param: Tensor, seed: int) -> Tensor:
    """Numbers in the parameter's shape and strides."""
    numbers = values(param.numel(), param.dtype, str(param.device), seed)
    return numbers.as_strided(param.shape, param.stride())


def shifted(tensor: Tensor, shift: int) -> Tensor:
    """The same numbers in the same order, `shift` elements behind where an allocation begins."""
    memory = tensor.new_empty(tensor.numel() + shift)
    return memory.as_strided(tensor.shape, tensor.stride(), shift).copy_(tensor)


def norms_of(tensors: list[Tensor]) -> Tensor:
    """Those of `layer_norms`, not rounded to float32."""
    return ops.layer_norms([*tensors, tensors[0].new_empty(0, dtype=torch.float64)])[:-1]


class Layers:
    """Parameters with gradients, parts of a flat center and a state as torch's, and the table of their steps."""

    def __init__(
        self,
        setting: Hyperparameters,
        params: list[Tensor],
        counts_on: str = "cpu",
        center_dtype: torch.dtype | None = None,
    ) -> None:
        self.params = params
        self.device = str(params[0].device)
        # Learning rates are numbers, or tensors on either device: a param group of each.
        rates = [setting.lr, torch.tensor(setting.lr), torch.tensor(setting.lr, dtype=torch.float64).to(self.device)]
        self.settings: list[Any] = [setting._replace(lr=rate) for rate in rates]
        self.groups = [index % len(rates) for index in range(len(params))]
        self.state = {param: self._state(setting, index, counts_on) for index, param in enumerate(params)}
        for index, param in enumerate(params):
            param.grad = in_order_of(param, seed=100 + index)
        sizes = [param.numel() for param in params]
        flat = values(sum(sizes), center_dtype or params[0].dtype, self.device, seed=50)
        self.centers = list(flat.split(sizes))
        self.norms = torch.empty(len(params), dtype=torch.float64, device=self.device)
        self.table = StepTable("sgd" if isinstance(setting, SgdHyperparameters) else "adamw", params, self.groups)
        self.table.set_targets(range(len(params)), self.centers, [param.stride() for param in params])

    def _state(self, setting: Hyperparameters, index: int, counts_on: str) -> Tensors:
        param = self.params[index]
        first = in_order_of(param, 200 + index)
        if isinstance(setting, SgdHyperparameters):
            return {"momentum_buffer": first} if setting.momentum else {}
        count_dtype = (torch.float32, torch.float64)[index % 2]
        count = torch.tensor(COUNTS[index % len(COUNTS)], dtype=count_dtype, device=counts_on)
        return {"step": count, "exp_avg": first, "exp_avg_sq": in_order_of(param, 300 + index).square_()}

    @property
    def grads(self) -> list[Tensor]:
        return [param.grad for param in self.params if param.grad is not None]

    def written(self) -> list[Tensor]:
        """Copies of the parameters and of their state."""
        states = [tensor for state in self.state.values() for tensor in state.values()]
        return [tensor.clone() for tensor in (*self.params, *states)]

    def step(self, pull: float = PULL, /, **options: Tensor) -> None:
        assert self.table.step(self.state, self.settings, pull, **options)

    def check_step(self) -> None:
        """A step, with pull and norms, after which every tensor must be the reference's but for its rounding."""
        layers = [
            (param, grad, self.state[param], self.settings[group], center.as_strided(param.shape, param.stride()), PULL)
            for param, grad, group, center in zip(self.params, self.grads, self.groups, self.centers, strict=True)
        ]
        wanted = [reference_step.step(*layer) for layer in layers]
        allowed = [reference_step.allowed(*layer) for layer in layers]
        norms = norms_of(self.grads)
        self.step(norms=self.norms)
        for param, want, most in zip(self.params, wanted, allowed, strict=True):
            assert_near({**self.state[param], "param": param}, want, most)
        assert torch.equal(self.norms, norms)


def assert_near(tensors: Tensors, wanted: Tensors, allowed: Tensors) -> None:
    """Counts exactly, and every element of the others as near as allowed."""
    assert tensors.keys() == wanted.keys()
    for key, want in wanted.items():
        errors = (tensors[key].double() - want).abs()
        assert (errors <= allowed.get(key, 0)).all(), key
