"""A model's buffers, where they are to be averaged: which they are, and what is sent of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MEAN, VARIANCE = "running_mean", "running_var"


class Buffers:
    """The floating-point buffers of a model; whole numbers, as BatchNorm's counters, stay each worker's own.

    Attributes:
        names, tensors: of the buffers.
        variances: the number of each running variance → that of its running mean.

    Args:
        source: "keep" for none; a module; or pairs of name and tensor, as from `model.named_buffers()`.

    Raises:
        ValueError: if it is something else.
    """

    def __init__(self, source: str | nn.Module | Iterable[tuple[str, Tensor]] = "keep") -> None:
        named: list[Any] = []
        if isinstance(source, nn.Module):
            named = list(source.named_buffers())
        elif not (isinstance(source, str) and source == "keep"):
            is_list = isinstance(source, Iterable) and not isinstance(source, (str, bytes, Tensor))
            named = list(source) if is_list else []
            if not is_list or not all(_is_named_tensor(pair) for pair in named):
                allowed = '"keep", the model, or pairs of name and tensor as model.named_buffers()'
                raise ValueError(f"buffers must be {allowed}, but is {source!r}")
        chosen = [(name, tensor) for name, tensor in named if tensor.is_floating_point() and tensor.numel()]
        self.names = [name for name, _ in chosen]
        self.tensors = [tensor for _, tensor in chosen]
        self.variances = self._variances()

    def describe(self) -> list[str]:
        """A line each: what ranks must agree on."""
        return [
            f"buffer {name}: shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in zip(self.names, self.tensors, strict=True)
        ]

    def _variances(self) -> dict[int, int]:
        """The number of each running variance → that of the running mean beside it."""
        number_of = {name: number for number, name in enumerate(self.names)}
        pairs = {
            number: number_of.get(name.removesuffix(VARIANCE) + MEAN)
            for number, name in enumerate(self.names)
            if name.rpartition(".")[2] == VARIANCE
        }
        return {variance: mean for variance, mean in pairs.items() if mean is not None}


def _is_named_tensor(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], torch.Tensor)
