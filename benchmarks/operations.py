"""What `benchmarks.kernels` times: for each operation our kernels, their peers, and the limit set by memory.

A class is one operation on one set of buffers. To add one: a class with `rows` and `error`, and its entry in
OPERATIONS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from benchmarks.models import Shape
from grawa_hvd import ops

PULL = 0.5
LR = 1e-3


@dataclass(frozen=True)
class Row:
    """One way to do the operation. `bytes` are those that must cross the memory bus, whatever this way really moves."""

    name: str
    role: Literal["ours", "peer", "limit"]
    bytes: int
    call: Callable[[], Any]


class Operation(Protocol):
    """One operation on one set of buffers."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None: ...

    def rows(self) -> list[Row]:
        """Ours first, then the peers, the limit last."""

    def error(self, row: Row) -> float:
        """Calls the row once; the largest deviation of its result from float64 arithmetic, relative to the values."""


class Norms:
    """norms[l] = ‖g[l]‖: reads every byte once. The limit is a plain sum of as many bytes."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None:
        self.grads = [_noise(shape, dtype, device) for shape in shapes]
        self.bytes = _bytes(self.grads)
        self.flat = _noise((-(-self.bytes // 4),), torch.float32, device)
        params = [torch.empty_like(grad) for grad in self.grads]
        for param, grad in zip(params, self.grads, strict=True):
            param.grad = grad
        self.table = ops.LayerTable(params)

    def rows(self) -> list[Row]:
        return [
            Row("LayerTable", "ours", self.bytes, self.table.grad_norms),
            Row("list", "ours", self.bytes, lambda: ops.layer_norms(self.grads)),
            Row("foreach_norm", "peer", self.bytes, lambda: torch._foreach_norm(self.grads)),
            Row("authors: norm + item", "peer", self.bytes, lambda: [torch.norm(g).item() for g in self.grads]),
            Row("plain sum", "limit", self.bytes, self.flat.sum),
        ]

    def error(self, row: Row) -> float:
        result = row.call()
        if row.role == "limit":
            return float((result.double() - self.flat.double().sum()).abs() / self.flat.double().abs().sum())
        expected = torch.stack([grad.double().norm() for grad in self.grads])
        norms = torch.stack([torch.as_tensor(norm, dtype=torch.float64, device=expected.device) for norm in result])
        return float(((norms - expected) / expected).abs().max())


class Pack:
    """out[offset_l:] = w[l]·x[l]: reads x, writes out. The limit is a plain copy of the same bytes."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None:
        self.params = [_noise(shape, dtype, device) for shape in shapes]
        self.views = [param.view(-1) for param in self.params]
        self.ranges = _ranges(self.params)
        self.out = torch.empty(self.ranges[-1][1], dtype=dtype, device=device)
        self.flat = _noise(self.out.shape, dtype, device)
        self.scalars = [(1 + index % 63) / 64 for index in range(len(shapes))]  # exact in float32
        self.weights = torch.tensor(self.scalars, device=device)
        self.table = ops.LayerTable(self.params)

    def rows(self) -> list[Row]:
        moved = 2 * _bytes(self.params)
        return [
            Row("LayerTable", "ours", moved, lambda: self.table.pack(self.weights, self.out)),
            Row("foreach_mul + cat", "peer", moved, self._by_foreach),
            Row("authors: layer by layer", "peer", moved, self._by_layer),
            Row("plain copy", "limit", moved, lambda: self.out.copy_(self.flat)),
        ]

    def error(self, row: Row) -> float:
        self.out.fill_(torch.nan)
        row.call()
        if row.role == "limit":
            return _deviation(self.out, self.flat)
        layers = zip(self.views, self.scalars, self.ranges, strict=True)
        return max(_deviation(self.out[begin:end], view.double() * w) for view, w, (begin, end) in layers)

    def _by_foreach(self) -> None:
        torch.cat(torch._foreach_mul(self.views, self.scalars), out=self.out)

    def _by_layer(self) -> None:
        for param, weight, (begin, end) in zip(self.params, self.scalars, self.ranges, strict=True):
            self.out[begin:end].copy_(param.ravel() * weight)


class _Centered:
    """Parameters and a flat centre: with views of it for the peers, and a buffer for a plain copy of it."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None:
        self.params = [_noise(shape, dtype, device) for shape in shapes]
        self.ranges = _ranges(self.params)
        self.center = _noise((self.ranges[-1][1],), dtype, device).roll(1)
        self.views = [self.center[a:b].view(s) for (a, b), s in zip(self.ranges, shapes, strict=True)]
        self.flat = torch.empty_like(self.center)


class Blend(_Centered):
    """x[l] += λ[l]·(c[l] − x[l]): reads x and c, writes x. The limit is a plain copy, by bytes per second."""

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shapes, dtype, device)
        self.pull = torch.full((len(shapes),), PULL, device=device)
        self.table = ops.LayerTable(self.params)

    def rows(self) -> list[Row]:
        size = _bytes(self.params)
        return [
            Row("LayerTable", "ours", 3 * size, lambda: self.table.blend_(self.center, self.pull)),
            Row("foreach_lerp_", "peer", 3 * size, lambda: torch._foreach_lerp_(self.params, self.views, PULL)),
            Row("authors: layer by layer", "peer", 3 * size, self._by_layer),
            Row("plain copy", "limit", 2 * size, lambda: self.flat.copy_(self.center)),
        ]

    def error(self, row: Row) -> float:
        for param in self.params:
            param.copy_(_noise(param.shape, param.dtype, param.device))
        old = [param.clone() for param in self.params]
        row.call()
        if row.role == "limit":
            return _deviation(self.flat, self.center)
        expected = (x.double().lerp(c.double(), PULL) for x, c in zip(old, self.views, strict=True))
        # x and c may nearly cancel: rounding is relative to them, not to their mean.
        scale = self.center.double().abs().max()
        return max(_deviation(new, goal, scale) for new, goal in zip(self.params, expected, strict=True))

    def _by_layer(self) -> None:
        for param, (begin, end) in zip(self.params, self.ranges, strict=True):
            param.add_(self.center[begin:end].view_as(param) - param, alpha=PULL)


class LocalStep(_Centered, ABC):
    """The update of a torch optimizer, the pull toward the center, and the gradient norms; a subclass names which.

    The peers are torch's own step (fused or foreach) with foreach_lerp_ and foreach_norm behind it, and what the
    authors do: the step, and then for each layer `norm().item()` and the pull. The limit is a plain copy.
    """

    algorithm: Literal["sgd", "adamw"]
    words: int  # per element: what must be read and written
    fuses_half_types = True

    def __init__(self, shapes: Sequence[Shape], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shapes, dtype, device)
        self.norms = torch.empty(len(shapes), device=device)
        for param in self.params:
            param.grad = _noise((param.numel() + 1,), dtype, device)[1:].clone().view(param.shape)
        self.grads = [param.grad for param in self.params if param.grad is not None]
        self.fused, self.foreach = self.optimizer(fused=True), self.optimizer(foreach=True)
        self.foreach.step()  # makes the state
        for param, state in self.foreach.state.items():
            # The counts of the fused step are on the device.
            self.fused.state[param] = {k: v.clone().to(device) if k == "step" else v for k, v in state.items()}
        self.table = ops.StepTable(self.algorithm, self.params, [0] * len(shapes))
        self.table.set_targets(
            range(len(shapes)), [view.view(-1) for view in self.views], [param.stride() for param in self.params]
        )

    @abstractmethod
    def optimizer(self, **kind: bool) -> torch.optim.Optimizer:
        """One over the parameters."""

    @abstractmethod
    def hyperparameters(self) -> list[Any]:
        """Those of the optimizer, for the table."""

    def rows(self) -> list[Row]:
        size = _bytes(self.params)
        moved, param = self.words * size, self.params[0]
        fused = Row("fused step + foreach", "peer", moved, lambda: self._by_foreach(self.fused))
        # On the CPU torch 2.12 and 2.13 leave most elements of half types without an update (pytorch#191763).
        is_broken = param.device.type == "cpu" and param.dtype.itemsize == 2 and not self.fuses_half_types
        return [
            Row("StepTable", "ours", moved, self._by_table),
            *([] if is_broken else [fused]),
            Row("foreach step + foreach", "peer", moved, lambda: self._by_foreach(self.foreach)),
            Row("authors: layer by layer", "peer", moved, self._by_layer),
            Row("plain copy", "limit", 2 * size, lambda: self.flat.copy_(self.center)),
        ]

    def error(self, row: Row) -> float:
        if row.role == "limit":
            row.call()
            return _deviation(self.flat, self.center)
        wide = [param.double() for param in self.params]
        twin = self.optimizer(foreach=False)
        twin.param_groups[0]["params"] = wide
        for param, copy, grad in zip(self.params, wide, self.grads, strict=True):
            copy.grad = grad.double()
            state = self.foreach.state[param]
            twin.state[copy] = {key: value.double() if value.dim() else value.clone() for key, value in state.items()}
        twin.step()
        for copy, view in zip(wide, self.views, strict=True):
            copy.lerp_(view.double(), PULL)
        row.call()
        scale = self.center.double().abs().max()
        return max(_deviation(new, goal, scale) for new, goal in zip(self.params, wide, strict=True))

    def _by_table(self) -> None:
        # The optimizer's `state` is torch's defaultdict.
        if not self.table.step(self.foreach.state, self.hyperparameters(), PULL, self.norms):
            raise RuntimeError("StepTable leaves this step to torch")

    def _by_foreach(self, optimizer: torch.optim.Optimizer) -> None:
        torch._foreach_norm(self.grads)
        optimizer.step()
        torch._foreach_lerp_(self.params, self.views, PULL)

    def _by_layer(self) -> None:
        for grad in self.grads:
            grad.norm().item()
        self.foreach.step()
        for param, view in zip(self.params, self.views, strict=True):
            param.add_(view - param, alpha=PULL)


class SgdStep(LocalStep):
    """SGD with momentum: reads x, g, the momentum and c, writes x and the momentum."""

    algorithm = "sgd"
    words = 6
    fuses_half_types = False

    def optimizer(self, **kind: bool) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.params, lr=LR, momentum=0.9, weight_decay=1e-4, **kind)

    def hyperparameters(self) -> list[Any]:
        return [ops.SgdHyperparameters(LR, 0.9, 0.0, 1e-4, False, False)]


class AdamwStep(LocalStep):
    """AdamW: reads x, g, both moments and c, writes x and both moments."""

    algorithm = "adamw"
    words = 8

    def optimizer(self, **kind: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.params, lr=LR, eps=1e-4, **kind)

    def hyperparameters(self) -> list[Any]:
        return [ops.AdamwHyperparameters(LR, 0.9, 0.999, 1e-4, 0.01, False)]


OPERATIONS: dict[str, type[Operation]] = {
    "norms": Norms,
    "pack": Pack,
    "blend": Blend,
    "sgd_step": SgdStep,
    "adamw_step": AdamwStep,
}


def _noise(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    # A block of normal numbers repeated: drawing 10⁸ of them would take longer than to measure on them.
    block = _normal_numbers(dtype, device)
    result = torch.empty(shape, dtype=dtype, device=device)
    for piece in result.view(-1).split(len(block)):
        piece.copy_(block[: len(piece)])
    return result


@lru_cache
def _normal_numbers(dtype: torch.dtype, device: torch.device) -> Tensor:
    block = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    return (block - block.mean()).to(device, dtype)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _ranges(tensors: Sequence[Tensor]) -> list[tuple[int, int]]:
    offsets = [0]
    for tensor in tensors:
        offsets.append(offsets[-1] + tensor.numel())
    return list(pairwise(offsets))


def _deviation(result: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    wide = expected.double()
    error = (result.double() - wide).abs().max() / (wide.abs().max() if scale is None else scale)
    return float(error.nan_to_num(torch.inf))
