"""Elements that were infinite when training began, as −inf of forbidden transitions: they stay, and nothing diverged.

So are NaN in a parameter without a gradient: memory that a model has, never filled and never uses. Such an element has
no difference from a centre. It counts as 0 while the workers average, and is then put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from grawa_hvd.modes import untold
from grawa_hvd.transfer import read


class Holes:
    """The infinite elements of some parameters, as they are now.

    Args:
        parameters: of a model; norms: theirs, [P], which the host waits for.
    """

    def __init__(self, parameters: Sequence[Tensor] = (), norms: Tensor | None = None) -> None:
        self._depth = 0
        self._of: dict[Tensor, tuple[Tensor, Tensor]] = {}  # parameter → where, and what
        finite = [] if norms is None else read(norms).isfinite().tolist()
        for parameter in (parameter for parameter, is_finite in zip(parameters, finite, strict=False) if not is_finite):
            where = parameter.isinf() if parameter.grad is not None else parameter.isfinite().logical_not_()
            if where.any():
                self._of[parameter] = (where, parameter.detach().clone())

    def __bool__(self) -> bool:
        return bool(self._of)

    def kept(self, already: Holes, sizes: dict[Tensor, torch.Size]) -> Holes:
        """The same with what another has of parameters that were laid out before, in these shapes."""
        before = {p: own for p, own in already._of.items() if p.shape == sizes[p]}
        self._of = {**{p: own for p, own in self._of.items() if p not in sizes or p.shape != sizes[p]}, **before}
        return self

    def describe(self, names: dict[Tensor, str]) -> list[str]:
        """A line each: what ranks must agree on."""
        counts = {p: int(values.isinf().sum()) for p, (_, values) in self._of.items()}
        return [f"{names[p]}: {number} infinite elements" for p, number in counts.items() if number]

    @contextmanager
    def filled(self) -> Iterator[None]:
        """Inside the block they are 0; after it as they were. One that is finite by now is none any more."""
        self._depth += 1
        try:
            if self._depth == 1:
                self._fill()
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._put_back()

    @torch.no_grad()
    def _fill(self) -> None:
        with untold(self._of):
            for parameter, (where, values) in self._of.items():
                where.logical_and_(parameter.isfinite().logical_not_())
                same = (parameter == values) | (parameter.isnan() & values.isnan())
                parameter.masked_fill_(where & same, 0.0)

    @torch.no_grad()
    def _put_back(self) -> None:
        with untold(self._of):
            for parameter, (where, values) in self._of.items():
                parameter.copy_(torch.where(where, values, parameter))

    @torch.no_grad()
    def after_pull(self) -> None:
        """Put back what a pull toward the centre has made NaN."""
        with untold(self._of):
            for parameter, (where, values) in self._of.items():
                parameter.copy_(torch.where(where & parameter.isnan(), values, parameter))
