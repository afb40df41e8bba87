"""The operators in plain PyTorch: what the kernels are tested against, and what serves a device without kernels.

Everything stays on the tensors' device: no value is read back to the host.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NO_GRADIENT = -1.0
"""Stands for the norm of a gradient that does not exist."""


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one piece of memory without gaps or overlaps, in any order of the dimensions.

    Args:
        tensor: a strided tensor.

    Returns:
        True if memory order is an order of the elements.
    """
    expected = 1
    for stride, size in sorted((tensor.stride(dim), tensor.size(dim)) for dim in range(tensor.dim())):
        if size == 0:
            return True
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return not tensor.is_neg()


def flat(tensor: Tensor) -> Tensor:
    """The elements in wire order: that of memory where the tensor is dense (a view), else row-major (a copy).

    Args:
        tensor: a strided tensor of any shape.

    Returns:
        The elements, shape [elements].
    """
    return tensor.as_strided((tensor.numel(),), (1,)) if is_dense(tensor) else tensor.reshape(-1)


@torch.no_grad()
def layer_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Reference of `grawa_hvd.ops.layer_norms`, same arguments and result."""
    _check_tensors(tensors, "tensors", torch.strided, torch.sparse_coo)
    is_wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    norms = [_norm(tensor.coalesce().values() if tensor.is_sparse else tensor) for tensor in tensors]
    return torch.stack(norms).to(torch.float64 if is_wide else torch.float32)


@torch.no_grad()
def pack(tensors: Sequence[Tensor], weights: Tensor, out: Tensor, base: Tensor | None = None) -> None:
    """Reference of `grawa_hvd.ops.pack`, same arguments and result."""
    _check_tensors(tensors, "tensors")
    _check_per_layer(weights, "weights", len(tensors))
    _check_flat(out, "out", tensors)
    if base is not None:
        _check_flat(base, "base", tensors)
        _check(base.dtype == out.dtype, f"base has dtype {base.dtype}: that of out, {out.dtype}, is needed")
    for tensor, weight, (begin, end) in zip(tensors, weights, _ranges(tensors), strict=True):
        arithmetic = _arithmetic_dtype(tensor, out)
        values = flat(tensor).to(arithmetic)
        if base is not None:
            values = values - base[begin:end].to(arithmetic)
        weighted = weight.to(arithmetic) * values
        out[begin:end] = torch.where(weight == 0, torch.zeros_like(weighted), weighted).to(out.dtype)


@torch.no_grad()
def blend_(tensors: Sequence[Tensor], center: Tensor, pull: Tensor, distances: Tensor | None = None) -> None:
    """Reference of `grawa_hvd.ops.blend_`, same arguments and result."""
    _check_tensors(tensors, "tensors")
    _check_per_layer(pull, "pull", len(tensors))
    if distances is not None:
        _check_per_layer(distances, "distances", len(tensors))
    _check_flat(center, "center", tensors)
    for index, (tensor, amount, (begin, end)) in enumerate(zip(tensors, pull, _ranges(tensors), strict=True)):
        arithmetic = _arithmetic_dtype(tensor, center)
        old, goal = flat(tensor).to(arithmetic), center[begin:end].to(arithmetic)
        if distances is not None:
            wide = _wide_dtype(tensor.device)
            distances[index] = _norm(goal.to(wide) - old.to(wide))
        fraction = amount.to(arithmetic)
        new = old + fraction * (goal - old)
        new = torch.where(fraction == 1, goal, new).to(tensor.dtype)
        new = torch.where(fraction == 0, flat(tensor), new)  # a NaN would not keep its bits through a conversion
        if is_dense(tensor):
            flat(tensor).copy_(new)
        else:
            tensor.copy_(new.view(tensor.shape))


@torch.no_grad()
def update_estimates_(sums: Tensor, counts: Tensor, norms: Tensor, decay: float) -> None:
    """Reference of `grawa_hvd.ops.update_estimates_`, same arguments and result."""
    _check(0 <= decay < 1, f"decay is {decay}: it must be in [0, 1)")
    for name, tensor in (("norms", norms), ("sums", sums), ("counts", counts)):
        _check_per_layer(tensor, name, norms.numel())
    is_new = norms != NO_GRADIENT
    sums.copy_(torch.where(is_new, decay * sums + (1 - decay) * norms.to(sums.dtype), sums))
    counts.copy_(torch.where(is_new, decay * counts + (1 - decay), counts))


def _norm(tensor: Tensor) -> Tensor:
    values = tensor.reshape(-1).to(_wide_dtype(tensor.device))
    if values.numel() == 0:
        return values.sum()
    largest = values.abs().amax()
    # Squares of values near the ends of the range would leave it.
    scale = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    return scale * (values / scale).square().sum().sqrt()


def _wide_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _arithmetic_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def _ranges(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    offsets = [0]
    for tensor in tensors:
        offsets.append(offsets[-1] + tensor.numel())
    return pairwise(offsets)


def _check_tensors(tensors: Sequence[Tensor], name: str, *layouts: torch.layout) -> None:
    for index, tensor in enumerate(tensors):
        _check_layout(tensor, f"{name}[{index}]", layouts or (torch.strided,))
        _check(
            tensor.dtype in FLOAT_DTYPES,
            f"{name}[{index}] has dtype {tensor.dtype}: float16, bfloat16, float32 and float64 are allowed",
        )


def _check_layout(tensor: Tensor, name: str, layouts: Sequence[torch.layout] = (torch.strided,)) -> None:
    allowed = " and ".join(str(layout) for layout in layouts)
    _check(tensor.layout in layouts, f"{name} has layout {tensor.layout}: {allowed} are allowed")
    _check(not tensor.is_nested, f"{name} is a nested tensor: plain ones are allowed")


def _check_per_layer(tensor: Tensor, name: str, layers: int) -> None:
    _check_layout(tensor, name)
    _check(tensor.shape == (layers,), f"{name} has shape {list(tensor.shape)}: [{layers}] is needed")
    right = tensor.dtype in (torch.float32, torch.float64)
    _check(right, f"{name} has dtype {tensor.dtype}: float32 and float64 are allowed")


def _check_flat(tensor: Tensor, name: str, tensors: Sequence[Tensor]) -> None:
    _check_layout(tensor, name)
    numel = sum(tensor.numel() for tensor in tensors)
    _check(tensor.shape == (numel,), f"{name} has shape {list(tensor.shape)}: [{numel}] is needed")
    _check(tensor.dtype in FLOAT_DTYPES, f"{name} has dtype {tensor.dtype}")


def _check(condition: bool, message: str) -> None:
    # The class that the kernels' checks raise.
    if not condition:
        raise RuntimeError(message)
