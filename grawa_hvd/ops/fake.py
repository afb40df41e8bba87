"""Fake kernels: what the operators return, without data, for torch.compile and torch.export."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_check: Callable[[bool, Callable[[], str]], None] = torch._check
_register_fake: Callable[[str, Callable[..., Any]], Any] = torch.library.register_fake


def _layer_norms(tensors: Sequence[Tensor]) -> Tensor:
    _check_devices(tensors)
    is_wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.empty(len(tensors), dtype=torch.float64 if is_wide else torch.float32, device=tensors[0].device)


def _pack(tensors: Sequence[Tensor], weights: Tensor, out: Tensor, base: Tensor | None = None) -> None:
    _check_devices(tensors, weights=weights, out=out, base=base)
    _check_layers("weights", weights, tensors)
    _check_flat("out", out, tensors)
    if base is not None:
        _check_flat("base", base, tensors)


def _blend_(tensors: Sequence[Tensor], center: Tensor, pull: Tensor, distances: Tensor | None = None) -> None:
    _check_devices(tensors, center=center, pull=pull, distances=distances)
    _check_layers("pull", pull, tensors)
    _check_flat("center", center, tensors)
    if distances is not None:
        _check_layers("distances", distances, tensors)


def _update_estimates_(sums: Tensor, counts: Tensor, norms: Tensor, decay: float) -> None:
    for name, tensor in (("sums", sums), ("counts", counts)):
        _check(tensor.shape == norms.shape, lambda name=name: f"{name} must have the shape of norms")  # type: ignore[misc]
    _check_devices([norms], sums=sums, counts=counts)


def _check_devices(tensors: Sequence[Tensor], **others: Tensor | None) -> None:
    """A kernel is chosen by all arguments together: beside a tensor of the meta device others would be passed over."""
    named = {f"tensors[{index}]": tensor for index, tensor in enumerate(tensors)}
    named.update((name, tensor) for name, tensor in others.items() if tensor is not None)
    device = next((tensor.device for tensor in named.values()), None)
    for name, tensor in named.items():
        _check(tensor.device == device, lambda: f"{name} is on {tensor.device}: all must be on {device}")  # noqa: B023


def _check_layers(name: str, values: Tensor, tensors: Sequence[Tensor]) -> None:
    _check(
        values.dim() == 1 and values.shape[0] == len(tensors),
        lambda: f"{name} must have one value per tensor, {len(tensors)}",
    )


def _check_flat(name: str, flat: Tensor, tensors: Sequence[Tensor]) -> None:
    numel = sum(tensor.numel() for tensor in tensors)
    _check(flat.dim() == 1 and flat.shape[0] == numel, lambda: f"{name} must have the elements of all tensors, {numel}")


for _name, _fake in (
    ("layer_norms", _layer_norms),
    ("pack", _pack),
    ("blend_", _blend_),
    ("update_estimates_", _update_estimates_),
):
    _register_fake(f"grawa::{_name}", _fake)
