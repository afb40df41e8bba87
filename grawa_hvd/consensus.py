"""The centre: the flat buffers in which weighted sums travel, and the pull of parameters toward them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.communicator import Communicator, Sum
from grawa_hvd.compression import HalfDifferences
from grawa_hvd.layers import Bucket, Layout


@dataclass
class Received:
    """A sum that has come already: Σ_m w[m]·x[m] of a bucket, still to be divided."""

    table: ops.LayerTable
    inverse: Tensor
    bytes: int = 0  # of its own; those of the message that brought it are counted there

    def done(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""

    def divide_into(self, out: Tensor) -> Tensor:
        """Write the average to a flat buffer, and return it."""
        self.table.pack(self.inverse, out)
        return out


@dataclass
class Underway:
    """One bucket's sum on its way: in the centre's own buffer, of differences that it will move by, or come already."""

    bucket: int
    sum: Sum
    differences: Tensor | None = None
    halves: HalfDifferences | None = None


class Center:
    """c[l] = Σ_m β[m,l]·x[m,l], in one flat buffer a bucket.

    A plain synchronous round sums in that buffer itself: it is wire buffer first and centre afterwards. Where the old
    centre is still needed, differences travel, c = c_old + Σ_m β[m]·(x[m] − c_old). Outer momentum keeps a velocity,
    and there the velocity is the wire buffer: since weights sum to 1,
    v = η·v + c − c_old = Σ_m β[m]·(x[m] − (c_old − η·v)).

    Args:
        layout: the parameters.
        outer_momentum: η, from 0 to below 1.
        halves: differences travel in 16 bits, and what rounding took away is kept for the next round.
        overlapped: training goes on during a round, near the old centre.
    """

    def __init__(
        self, layout: Layout, outer_momentum: float = 0.0, halves: bool = False, overlapped: bool = False
    ) -> None:
        self._layout = layout
        self._momentum = outer_momentum
        self._halves = halves
        self._overlapped = overlapped
        self._in_place = not (outer_momentum or halves or overlapped)
        self._kept = {"center": [bucket.new_buffer() for bucket in layout.buckets]}
        if outer_momentum:
            self._kept["velocity"] = [bucket.new_buffer() for bucket in layout.buckets]
        if halves:
            self._kept["residual"] = [torch.zeros_like(buffer, dtype=_wide(buffer)) for buffer in self._kept["center"]]
        # Parameters that have no previous centre: nothing pulls them, and their velocity starts from rest.
        self._unseen = set(range(len(layout.parameters)))
        self._pulls: dict[float, list[Tensor]] = {}
        self.version = 0  # of which parameters have a centre

    @property
    def known(self) -> bool:
        """Whether there is a centre to be pulled to."""
        return len(self._unseen) < len(self._layout.parameters)

    def part(self, bucket: int) -> Tensor:
        """The flat centre of a bucket."""
        return self._kept["center"][bucket]

    def parts(self) -> list[Tensor | None]:
        """Each parameter's part of the flat centre, [its elements]; None for one that has no centre yet."""
        result: list[Tensor | None] = [None] * len(self._layout.parameters)
        for bucket, buffer in zip(self._layout.buckets, self._kept["center"], strict=True):
            for index, part in zip(bucket.members, bucket.split(buffer), strict=True):
                result[index] = None if index in self._unseen else part
        return result

    def start(self, number: int, weights: Tensor, communicator: Communicator, reach: float = 0.0) -> Underway:
        """Start the weighted sum of one bucket over the workers; a collective.

        Args:
            number: which bucket.
            weights: this worker's, one a parameter, [P]; 0 contributes exact zeros even over NaN.
            communicator: the workers.
            reach: the largest distance of a worker from the centre; only with `halves`.
        """
        bucket, center = self._layout.buckets[number], self._kept["center"][number]
        own = weights[bucket.indices]
        if self._in_place:
            bucket.table.pack(own, center)
            return Underway(number, communicator.sum_async_(center, bucket.name))
        if self._halves and self._unseen.isdisjoint(bucket.members):
            differences = center.to(_wide(center), copy=True)
            bucket.table.pack(own, differences, base=differences)
            halves = HalfDifferences(differences, self._kept["residual"][number], reach)
            sum_ = communicator.sum_async_(halves.wire, f"{bucket.name}.half")
            return Underway(number, sum_, differences, halves)
        if self._momentum:
            differences = self._kept["velocity"][number].mul_(-self._momentum).add_(center)
        else:
            differences = center.clone()
        bucket.table.pack(own, differences, base=differences)
        sum_ = communicator.sum_async_(differences, bucket.name, overlapped=self._overlapped)
        return Underway(number, sum_, differences)

    def move_(self, underway: Underway) -> None:
        """Let a bucket's centre be what its sum, which has come, says."""
        number, differences = underway.bucket, underway.differences
        bucket, center = self._layout.buckets[number], self._kept["center"][number]
        if isinstance(underway.sum, Received):
            if self._in_place:
                underway.sum.divide_into(center)
            else:
                differences = underway.sum.divide_into(torch.empty_like(center)).sub_(center)
        if underway.halves is not None:
            underway.halves.receive()
        if differences is not None:
            # What travelled for outer momentum, but in 16 bits or beside the rows, was the velocity itself.
            if self._momentum and differences is not self._kept["velocity"][number]:
                differences = self._kept["velocity"][number].mul_(self._momentum).add_(differences)
            center.add_(differences)
        if not self._unseen.isdisjoint(bucket.members):
            self._rest(bucket, number)
            self._see(bucket.members)

    def _rest(self, bucket: Bucket, number: int) -> None:
        if self._momentum:
            for index, velocity in zip(bucket.members, bucket.split(self._kept["velocity"][number]), strict=True):
                if index in self._unseen:
                    velocity.zero_()

    def _see(self, members: Iterable[int]) -> None:
        self._unseen.difference_update(members)
        self._pulls.clear()
        self.version += 1

    def average_(self, weights: Tensor, communicator: Communicator) -> None:
        """Replace the whole centre by the weighted sum over workers; a collective."""
        for underway in [self.start(number, weights, communicator) for number in range(len(self._layout.buckets))]:
            underway.sum.wait()
            self.move_(underway)

    def forget(self) -> None:
        """Have no centre, as after a round that broke off and left parts of sums behind."""
        for buffers in self._kept.values():
            for buffer in buffers:
                buffer.zero_()
        self._unseen = set(range(len(self._layout.parameters)))
        self._pulls.clear()
        self.version += 1

    def pull_(self, strength: float) -> None:
        """x ← (1 − strength)·x + strength·c wherever there is a centre; at strength 1 bitwise c."""
        for number in range(len(self._layout.buckets)):
            self.pull_bucket_(number, strength)

    def pull_bucket_(self, number: int, strength: float, distances: Tensor | None = None) -> None:
        """The same for one bucket.

        Args:
            number: which bucket.
            strength: from 0 to 1.
            distances: if given, [P], receives ‖x − c‖ of the bucket's parameters before the pull.
        """
        bucket, pull = self._layout.buckets[number], self._pull_tensors(strength)[number]
        if distances is None:
            bucket.table.blend_(self._kept["center"][number], pull)
        else:
            part = torch.zeros_like(pull)
            bucket.table.blend_(self._kept["center"][number], pull, part)
            distances[bucket.indices] = part.to(distances)

    def distances(self) -> Tensor:
        """‖x − c‖ of each parameter, float64, [P]; 0 for a finite one without a centre."""
        result = torch.zeros(len(self._layout.parameters), dtype=torch.float64, device=self._layout.device)
        for number in range(len(self._layout.buckets)):
            self.pull_bucket_(number, 0.0, result)
        if self._unseen:
            has_center = [0.0 if index in self._unseen else 1.0 for index in range(len(result))]
            result.mul_(self._layout.numbers(has_center))
        return result

    def _pull_tensors(self, strength: float) -> list[Tensor]:
        if strength not in self._pulls:
            self._pulls[strength] = [
                self._layout.numbers([0.0 if index in self._unseen else strength for index in bucket.members])
                for bucket in self._layout.buckets
            ]
        return self._pulls[strength]

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Parameter index → its centre and, where kept, velocity and residual, in the parameter's shape (views)."""
        result: dict[int, dict[str, Tensor]] = {}
        for kind, index, view in self._views():
            if index not in self._unseen:
                result.setdefault(index, {})[kind] = view
        return dict(sorted(result.items()))

    def _views(self) -> Iterator[tuple[str, int, Tensor]]:
        for kind, buffers in self._kept.items():
            for bucket, buffer in zip(self._layout.buckets, buffers, strict=True):
                for index, view in zip(bucket.members, bucket.views(buffer), strict=True):
                    yield kind, index, view

    def load(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Take over what `state` returned, here or in another process; parameters that it lacks start unseen.

        Raises:
            ValueError: if a shape differs.
        """
        for kind, index, view in self._views():
            saved = state.get(index, {}).get(kind)
            if saved is None:
                continue
            if saved.shape != view.shape:
                raise ValueError(
                    f"the {kind} of {self._layout.names[index]} has shape {tuple(saved.shape)} in the "
                    f"checkpoint, and {tuple(view.shape)} in this model"
                )
            view.copy_(saved)
        self._see(index for index in state if "center" in state[index])

    def adopt_(self, has_it: bool, communicator: Communicator) -> None:
        """Copy centre and velocity from the one rank that says `has_it` to all; a collective."""
        for kind, buffers in self._kept.items():
            for bucket, buffer in zip(self._layout.buckets, buffers, strict=True):
                if not has_it:
                    buffer.zero_()
                if kind != "residual":  # each worker's own
                    communicator.sum_async_(buffer, f"adopt.{kind}.{bucket.name}", exact=True).wait()
        self._see(range(len(self._layout.parameters)))


def _wide(buffer: Tensor) -> torch.dtype:
    return torch.float64 if buffer.dtype == torch.float64 else torch.float32


@contextmanager
def plain_mean(
    layout: Layout, weight: float, communicator: Communicator, received: list[Underway] | None = None
) -> Iterator[None]:
    """Let the parameters be the sum of weight·x over the workers inside the block, and bitwise their own after it.

    Args:
        layout: the parameters.
        weight: 1/M for a worker that counts, 0 for one that does not.
        communicator: the workers; all of them enter.
        received: the mean, where it has come already.
    """
    with torch.no_grad():
        own = [parameter.detach().clone() for parameter in layout.parameters]
        mean = Center(layout)
        if received is None:
            mean.average_(torch.full((len(own),), weight, dtype=torch.float64, device=layout.device), communicator)
        for underway in received or []:
            mean.move_(underway)
        mean.pull_(1.0)
        del mean
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, saved in zip(layout.parameters, own, strict=True):
                parameter.copy_(saved)
