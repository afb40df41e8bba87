"""What an optimizer keeps elsewhere than in `.state`: optimizers within it, slow weights, numbers in its param groups.

A worker that has diverged becomes the centre and its optimizer as new. What is kept elsewhere is put back to what it
was at the wrapping, for the constructor's arguments are not known any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_OURS = frozenset({"_worker", "_local_step", "_transport", "state"})


class Elsewhere:
    """What an optimizer keeps elsewhere, as it is now.

    Tensors that are equal to a parameter now are taken for copies of it, as Lookahead's slow weights are.

    Args:
        optimizer: before its first step.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._renewals: list[Callable[[], object]] = []
        self._never_finite = {(id(holder), key) for holder, key, value in _walk(optimizer) if not _is_finite(value)}
        parameters = _parameters(optimizer)
        for holder, key, value in _walk(optimizer):
            if isinstance(value, float) and math.isfinite(value) and not isinstance(holder, tuple):
                self._renewals.append(_renewed_number(holder, key, value))
            elif isinstance(value, Tensor):
                self._renewals.append(_renewed_tensor(value, parameters))

    @torch.no_grad()
    def renew(self) -> bool:
        """Make all as new, once the parameters are what they are to be.

        Returns:
            Whether all that is kept elsewhere is finite now, as far as it was when this was made.
        """
        for optimizer in _optimizers(self._optimizer):
            optimizer.state.clear()
        for renewal in self._renewals:
            renewal()
        kept = _walk(self._optimizer)
        return all((id(holder), key) in self._never_finite or _is_finite(value) for holder, key, value in kept)


def _renewed_number(holder: Any, key: Any, first: float) -> Callable[[], object]:
    def renew() -> None:
        # A learning rate that a scheduler has moved is no state of this optimizer.
        if not _is_finite(holder[key]):
            holder[key] = first

    return renew


def _renewed_tensor(tensor: Tensor, parameters: list[Tensor]) -> Callable[[], object]:
    alike = [parameter for parameter in parameters if _equal(parameter, tensor)]
    if alike and tensor.dim():
        return lambda: tensor.copy_(alike[0])
    first = tensor.detach().clone()
    return lambda: tensor if tensor.dim() == 0 and _is_finite(tensor) else tensor.copy_(first)


def _equal(parameter: Tensor, tensor: Tensor) -> bool:
    same = parameter.shape == tensor.shape and parameter.dtype == tensor.dtype and parameter.device == tensor.device
    return same and torch.equal(parameter, tensor)


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def _parameters(optimizer: Any) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizers(optimizer: Any) -> Iterator[Any]:
    """The optimizers that one holds, however deep, and it itself."""
    seen = {id(optimizer): optimizer}
    waiting = [optimizer]
    while waiting:
        one = waiting.pop()
        yield one
        for value in vars(one).values():
            for held in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(held, torch.optim.Optimizer) and id(held) not in seen:
                    seen[id(held)] = held
                    waiting.append(held)


def _walk(optimizer: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The tensors and floats that are neither parameters nor `.state`, with the container and the key of each."""
    seen = set(map(id, _parameters(optimizer)))
    states = {id(one.state) for one in _optimizers(optimizer)}
    waiting: list[tuple[Any, Any, Any]] = []
    for one in _optimizers(optimizer):
        waiting += [(vars(one), key, value) for key, value in vars(one).items() if key not in _OURS]
    while waiting:
        holder, key, value = waiting.pop()
        if isinstance(value, float):
            yield holder, key, value
        if id(value) in seen or id(value) in states:
            continue
        if isinstance(value, Tensor):
            seen.add(id(value))
            yield holder, key, value
        elif isinstance(value, (dict, list, tuple)):
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(value, number, entry) for number, entry in items]
