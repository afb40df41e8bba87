"""The centre: the flat buffers in which weighted sums travel, and the pull of parameters toward them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from grawa_hvd.communicator import Communicator
from grawa_hvd.layers import Layout


class Center:
    """c[l] = Σ_m β[m,l]·x[m,l], in one flat buffer a bucket that is wire buffer first and centre afterwards.

    Outer momentum keeps a velocity besides, and there the velocity is the wire buffer: since a layer's weights sum
    to 1, v_new = η·v + c − c_old = Σ_m β[m]·(x[m] − (c_old − η·v)), so each worker packs its part of that sum over v.

    Args:
        layout: the parameters.
        outer_momentum: η, from 0 to below 1.
    """

    def __init__(self, layout: Layout, outer_momentum: float) -> None:
        self._layout = layout
        self._momentum = outer_momentum
        self._buffers = [bucket.new_buffer() for bucket in layout.buckets]
        self._velocities = [bucket.new_buffer() for bucket in layout.buckets] if outer_momentum else []
        # Parameters that have no previous centre: their velocity starts from rest.
        self._unseen = set(range(len(layout.parameters)))
        self._pulls: dict[float, list[Tensor]] = {}

    @property
    def known(self) -> bool:
        """Whether there is a centre to be pulled to."""
        return len(self._unseen) < len(self._layout.parameters)

    def average_(self, weights: Tensor, communicator: Communicator) -> int:
        """Replace the centre by the weighted sum over workers; a collective.

        Args:
            weights: this worker's, one a parameter, [P]; 0 contributes exact zeros even over NaN.
            communicator: the workers.

        Returns:
            Bytes that this worker handed to the collectives.
        """
        try:
            sums = [
                communicator.sum_async_(self._packed(number, weights), bucket.name)
                for number, bucket in enumerate(self._layout.buckets)
            ]
            for pending in sums:
                pending.wait()
        except BaseException:
            self.forget()
            raise
        if self._momentum:
            self._move()
        self._unseen.clear()
        return sum(pending.bytes for pending in sums)

    def _packed(self, number: int, weights: Tensor) -> Tensor:
        bucket, center = self._layout.buckets[number], self._buffers[number]
        own = weights[bucket.indices]
        if not self._momentum:
            bucket.table.pack(own, center)
            return center
        velocity = self._velocities[number]
        velocity.mul_(-self._momentum).add_(center)
        bucket.table.pack(own, velocity, base=velocity)
        return velocity

    def forget(self) -> None:
        """Have no centre, as after a round that broke off and left parts of sums behind."""
        for buffer in (*self._buffers, *self._velocities):
            buffer.zero_()
        self._unseen = set(range(len(self._layout.parameters)))

    def _move(self) -> None:
        for number, bucket in enumerate(self._layout.buckets):
            self._buffers[number].add_(self._velocities[number])
            for index, velocity in zip(bucket.members, bucket.views(self._velocities[number]), strict=True):
                if index in self._unseen:
                    velocity.zero_()

    def pull_(self, strength: float, distances: Tensor | None = None) -> None:
        """x ← (1 − strength)·x + strength·c; at strength 1 bitwise c.

        Args:
            strength: from 0 to 1.
            distances: if given, [P], receives ‖x − c‖ of each parameter before the pull.
        """
        for number, (bucket, pull) in enumerate(zip(self._layout.buckets, self._pull_tensors(strength), strict=True)):
            if distances is None:
                bucket.table.blend_(self._buffers[number], pull)
            else:
                part = torch.zeros_like(pull)
                bucket.table.blend_(self._buffers[number], pull, part)
                distances[bucket.indices] = part.to(distances)

    def _pull_tensors(self, strength: float) -> list[Tensor]:
        if strength not in self._pulls:
            self._pulls[strength] = [
                torch.full((len(bucket.members),), strength, dtype=torch.float64, device=bucket.indices.device)
                for bucket in self._layout.buckets
            ]
        return self._pulls[strength]

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Parameter index → its centre and, with outer momentum, velocity, in the parameter's shape (views)."""
        result: dict[int, dict[str, Tensor]] = {}
        for kind, buffers in (("center", self._buffers), ("velocity", self._velocities)):
            for bucket, buffer in zip(self._layout.buckets, buffers, strict=False):
                for index, view in zip(bucket.members, bucket.views(buffer), strict=True):
                    if index not in self._unseen:
                        result.setdefault(index, {})[kind] = view
        return dict(sorted(result.items()))

    def load(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Take over what `state` returned, here or in another process; parameters that it lacks start unseen.

        Raises:
            ValueError: if a shape differs.
        """
        for kind, buffers in (("center", self._buffers), ("velocity", self._velocities)):
            for bucket, buffer in zip(self._layout.buckets, buffers, strict=False):
                for index, view in zip(bucket.members, bucket.views(buffer), strict=True):
                    saved = state.get(index, {}).get(kind)
                    if saved is None:
                        continue
                    if saved.shape != view.shape:
                        raise ValueError(
                            f"the {kind} of {self._layout.names[index]} has shape {tuple(saved.shape)} in the "
                            f"checkpoint, and {tuple(view.shape)} in this model"
                        )
                    view.copy_(saved)
        self._unseen -= {index for index in state if "center" in state[index]}

    def adopt_(self, has_it: bool, communicator: Communicator) -> None:
        """Copy centre and velocity from the one rank that says `has_it` to all; a collective."""
        for kind, buffers in (("center", self._buffers), ("velocity", self._velocities)):
            for bucket, buffer in zip(self._layout.buckets, buffers, strict=False):
                if not has_it:
                    buffer.zero_()
                communicator.sum_async_(buffer, f"adopt.{kind}.{bucket.name}", exact=True).wait()
        self._unseen.clear()


@contextmanager
def plain_mean(layout: Layout, weight: float, communicator: Communicator) -> Iterator[None]:
    """Let the parameters be the sum of weight·x over the workers inside the block, and bitwise their own after it.

    Args:
        layout: the parameters.
        weight: 1/M for a worker that counts, 0 for one that does not.
        communicator: the workers; all of them enter.
    """
    with torch.no_grad():
        own = [parameter.detach().clone() for parameter in layout.parameters]
        mean = Center(layout, outer_momentum=0.0)
        weights = torch.full((len(own),), weight, dtype=torch.float64, device=layout.device)
        mean.average_(weights, communicator)
        mean.pull_(1.0)
        del mean
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, saved in zip(layout.parameters, own, strict=True):
                parameter.copy_(saved)
