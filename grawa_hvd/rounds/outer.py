"""How the centre moves, once a round's sum has come: to the average, or by a step of an optimizer of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from grawa_hvd.model.layout import Layout
from grawa_hvd.rounds.center import Center, check_shape

OuterFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Outer(Protocol):
    """How the centre moves."""

    def step_(self, number: int, differences: Tensor) -> None:
        """Move one bucket's centre, given the average minus the centre, flat; `differences` may be overwritten."""

    def forget(self) -> None:
        """Have no memory of earlier rounds."""

    def state(self) -> dict[int, dict[str, Any]]:
        """Parameter index → what is kept for it, for a checkpoint."""

    def load(self, state: dict[int, dict[str, Any]]) -> None:
        """Take over what `state` returned."""


class Replace:
    """The average is the new centre: c ← c + (Σ_m β[m]·x[m] − c).

    Args:
        center: what is moved.
    """

    def __init__(self, center: Center) -> None:
        self._center = center

    def step_(self, number: int, differences: Tensor) -> None:
        """c ← c + differences."""
        self._center.buffers[number].add_(differences)

    def forget(self) -> None:
        """Nothing is kept."""

    def state(self) -> dict[int, dict[str, Any]]:
        """Nothing."""
        return {}

    def load(self, state: dict[int, dict[str, Any]]) -> None:
        """Nothing is kept."""


class TorchOuter:
    """A torch optimizer steps the centre, whose gradient is the centre minus the average.

    A parameter's first average becomes its centre; the optimizer has a say from the second round on, or from the first
    where the centre starts at the parameters of the first step. SGD with lr 1 and momentum η is
    v ← η·v + (average − c), c ← c + v: BMUF, SlowMo (Wang et al., ICLR 2020). With Nesterov it is DiLoCo (Douillard et
    al., 2023).

    Args:
        factory: given the parts of the centre as parameters, returns the optimizer.
        layout: the model's parameters.
        center: what is moved.
    """

    def __init__(self, factory: OuterFactory, layout: Layout, center: Center) -> None:
        self._layout, self._center = layout, center
        self._parts = [torch.nn.Parameter(view, requires_grad=True) for view in center.views()]
        self._optimizer = factory(self._parts) if self._parts else None

    def step_(self, number: int, differences: Tensor) -> None:
        """Step one bucket's centre."""
        bucket, moved = self._layout.buckets[number], []
        views = bucket.views(differences)
        for index, view in zip(bucket.members, views, strict=True):
            if not self._center.has(index):
                self._parts[index].data.add_(view)
                continue
            part = self._parts[index]
            part.grad = view.neg_().to(part.dtype)
            moved.append(part)
        if moved and self._optimizer is not None:
            self._optimizer.step()
        for part in moved:
            part.grad = None

    def forget(self) -> None:
        """Have no momentum, or whatever the optimizer keeps."""
        if self._optimizer is not None:
            self._optimizer.state.clear()

    def state(self) -> dict[int, dict[str, Any]]:
        """Parameter index → the optimizer's state of it."""
        if self._optimizer is None:
            return {}
        kept = self._optimizer.state
        return {index: dict(kept[part]) for index, part in enumerate(self._parts) if kept.get(part)}

    def load(self, state: dict[int, dict[str, Any]]) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: if a tensor has neither the shape of its parameter nor that of a number.
        """
        for index, kept in state.items():
            assert self._optimizer is not None
            own = self._optimizer.state[self._parts[index]]
            for key, value in kept.items():
                if not isinstance(value, Tensor) or value.dim() == 0:
                    own[key] = value.clone() if isinstance(value, Tensor) else value
                    continue
                check_shape(value, self._parts[index], f"the outer {key} of {self._layout.names[index]}")
                own[key] = torch.empty_like(self._parts[index], dtype=value.dtype).copy_(value)


def momentum(eta: float) -> OuterFactory:
    """The factory that `outer_momentum=η` stands for."""
    return functools.partial(torch.optim.SGD, lr=1.0, momentum=eta)
