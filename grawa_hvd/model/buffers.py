"""A model's buffers, where they are to be averaged: which they are, and what is sent of them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MEAN, VARIANCE = "running_mean", "running_var"


class Buffers:
    """The floating-point buffers of a model; whole numbers, as BatchNorm's counters, stay each worker's own.

    Of a module they are those that it has when they are asked for: `model.to(dtype)` and the like put others in their
    places. What training cannot write to is left out: sparse, expanded and inference tensors, and those without data.

    Args:
        source: "keep" for none; a module; or pairs of name and tensor, as from `model.named_buffers()`.

    Raises:
        ValueError: if it is something else.
    """

    def __init__(self, source: str | nn.Module | Iterable[tuple[str, Tensor]] = "keep") -> None:
        self._model = source if isinstance(source, nn.Module) else None
        is_list = isinstance(source, Iterable) and not isinstance(source, (str, bytes, Tensor, nn.Module))
        given: Any = source if is_list else ()
        self._given: list[tuple[str, Tensor]] = list(given)
        keeps = isinstance(source, str) and source == "keep"
        if not (is_list or keeps or self._model is not None) or not all(map(_is_named_tensor, self._given)):
            allowed = '"keep", the model, or pairs of name and tensor as model.named_buffers()'
            raise ValueError(f"buffers must be {allowed}, but is {source!r}")

    def _named(self) -> list[tuple[str, Tensor]]:
        named = self._given if self._model is None else self._model.named_buffers()
        return [(name, tensor) for name, tensor in named if _is_averaged(tensor)]

    @property
    def names(self) -> list[str]:
        """Of the buffers."""
        return [name for name, _ in self._named()]

    @property
    def tensors(self) -> list[Tensor]:
        """The buffers."""
        return [tensor for _, tensor in self._named()]

    @property
    def variances(self) -> dict[int, int]:
        """The number of each running variance → that of the running mean beside it."""
        number_of = {name: number for number, name in enumerate(self.names)}
        pairs = {
            number: number_of.get(name.removesuffix(VARIANCE) + MEAN)
            for name, number in number_of.items()
            if name.rpartition(".")[2] == VARIANCE
        }
        return {variance: mean for variance, mean in pairs.items() if mean is not None}

    def describe(self) -> list[str]:
        """A line each: what ranks must agree on."""
        return [
            f"buffer {name}: shape {tuple(tensor.shape)}, {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in self._named()
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> Buffers:
        """Those of the copied model, if that is being copied too; else copies of the tensors alone."""
        if self._model is None or id(self._model) in memo:
            return Buffers(copy.deepcopy(self._model if self._model is not None else self._given, memo))
        return Buffers(copy.deepcopy(list(self._model.named_buffers()), memo))


def _is_averaged(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta or tensor.is_inference():
        return False
    is_expanded = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    return tensor.numel() > 0 and not is_expanded


def _is_named_tensor(pair: Any) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], torch.Tensor)
