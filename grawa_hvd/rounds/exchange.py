"""The sum of a round: each worker weighs its parameters, and the transport adds them up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor

from grawa_hvd.model.flat import FlatBuffers, wide_type
from grawa_hvd.model.layout import Layout
from grawa_hvd.rounds.center import Center, check_shape
from grawa_hvd.transfer import send
from grawa_hvd.transport.base import Work
from grawa_hvd.transport.wire import Wire


class Shares(NamedTuple):
    """Who counts how much in a round, and who is there; the workers are those that take part.

    Attributes:
        weights: see `Mixing`; in the host's memory.
        own: which of the workers this one is.
        present: those that are there, in order.
        radius: the largest ‖x − c‖ of a worker, where differences travel in 16 bits.
    """

    weights: Tensor
    own: int
    present: list[int]
    radius: float


class CountedWork(Work, Protocol):
    """A collective under way that knows its size."""

    @property
    def bytes(self) -> int:
        """What this worker handed to the transport."""


@dataclass
class Incoming:
    """One bucket's average on its way.

    Attributes:
        bucket: its number.
        sum: what is waited for.
        differences: where Σ_m β[m]·(x[m] − c) arrives; None if the average arrives in the centre's own buffer.
    """

    bucket: int
    sum: CountedWork
    differences: Tensor | None


class Exchange:
    """Weighted sums over the workers.

    Where nobody needs the old centre, the average takes its place: c ← Σ_m β[m]·x[m] costs no memory. Elsewhere
    differences travel, Σ_m β[m]·(x[m] − c); a parameter without a centre has zeros there, so it travels whole.

    Args:
        layout: the parameters.
        center: what differences are taken from.
        wire: how the sums travel.
        in_place: whether the average may take the place of the centre.
    """

    def __init__(self, layout: Layout, center: Center, wire: Wire, in_place: bool) -> None:
        self._layout, self._center, self._wire = layout, center, wire
        self._in_place = in_place
        # What rounding to 16 bits took from this worker's differences, to be sent in the next round.
        self._residuals = None if in_place or wire.small is None else FlatBuffers(layout, wide=True)

    def sender(self, shares: Shares) -> Callable[[int], Incoming]:
        """What starts the sum of one bucket, given its number; each call is a collective."""
        own = send(shares.weights[shares.own], self._layout.device)[self._layout.layer_of]
        return partial(self.start, weights=own, radius=shares.radius)

    def start(self, number: int, weights: Tensor, radius: float) -> Incoming:
        """Start the sum of one bucket; a collective.

        Args:
            number: which bucket.
            weights: this worker's, one a parameter, [P]; 0 contributes exact zeros even over NaN.
            radius: the largest ‖x − c‖ of a worker, where differences travel in 16 bits.
        """
        bucket, center = self._layout.buckets[number], self._center.buffers[number]
        own = weights[bucket.indices]
        if self._in_place:
            bucket.table.pack(own, center)
            return Incoming(number, self._wire.sum_(center, bucket.name), None)
        if self._residuals is not None and self._center.has_all(bucket.members):
            differences = center.to(wide_type(center.dtype), copy=True)
            bucket.table.pack(own, differences, base=differences)
            residual = self._residuals.buffers[number]
            sum_ = self._wire.sum_differences_(differences, residual, radius, f"{bucket.name}.small")
            return Incoming(number, sum_, differences)
        differences = center.clone()
        bucket.table.pack(own, differences, base=differences)
        return Incoming(number, self._wire.sum_(differences, bucket.name), differences)

    def forget(self) -> None:
        """Have nothing left to send from earlier rounds."""
        if self._residuals is not None:
            self._residuals.zero_()

    def state(self) -> dict[int, Tensor]:
        """Parameter index → what it has still to send, in its own shape (a view)."""
        return {} if self._residuals is None else dict(enumerate(self._residuals.views()))

    def load(self, state: dict[int, Tensor]) -> None:
        """Take over what `state` returned.

        Raises:
            ValueError: if a shape differs.
        """
        views = [] if self._residuals is None else self._residuals.views()
        for index, view in enumerate(views):
            if index in state:
                check_shape(state[index], view, f"the residual of {self._layout.names[index]}")
                view.copy_(state[index])
