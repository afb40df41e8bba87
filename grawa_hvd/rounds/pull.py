"""How a worker moves toward the centre: x ← x + s·(c − x)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from grawa_hvd.model.layout import Layout
from grawa_hvd.modes import untold
from grawa_hvd.rounds.center import Center


class Pull(Protocol):
    """How far a round moves a worker, and toward which centre."""

    @property
    def anchor(self) -> Literal["new", "old"]:
        """The centre as this round has moved it ("new"), or as it was before ("old")."""

    def strength(self, workers: int) -> float | Callable[[Tensor], Tensor]:
        """The part of the way that a worker goes; negative pushes it away.

        Args:
            workers: M.

        Returns:
            A number, or a function of this worker's ‖x − c‖ over all parameters, float64, [], to the same: it costs a
            pass over the model.
        """


@dataclass(frozen=True)
class Constant:
    """The same part of the way in every round: λ of the user.

    Args:
        part: from 0 to 1.
        anchor: see `Pull`.
    """

    part: float
    anchor: Literal["new", "old"] = "new"

    def strength(self, workers: int) -> float:
        """λ."""
        return self.part


class Puller:
    """Moves the parameters of a model toward a centre.

    Args:
        layout: the parameters.
        center: what they are moved toward; a parameter without a centre stays.
    """

    def __init__(self, layout: Layout, center: Center) -> None:
        self._layout, self._center = layout, center
        self._strengths: dict[float, list[Tensor]] = {}
        self._version = center.version

    def pull_(self, strength: float) -> None:
        """x ← (1 − strength)·x + strength·c for all parameters; at strength 1 bitwise c."""
        for number in range(len(self._layout.buckets)):
            self.pull_bucket_(number, strength)

    def pull_bucket_(self, number: int, strength: float | Tensor, distances: Tensor | None = None) -> None:
        """The same for one bucket.

        Args:
            number: which bucket.
            strength: the part of the way; a number or a tensor of no dimension.
            distances: if given, float64 [P], receives ‖x − c‖ of the bucket's parameters before the pull.
        """
        bucket, center = self._layout.buckets[number], self._center.buffers[number]
        strengths = self._of_parameters(strength)[number]
        if distances is None:
            bucket.table.blend_(center, strengths, tells_autograd=False)
        else:
            part = torch.zeros_like(strengths)
            bucket.table.blend_(center, strengths, part, tells_autograd=False)
            distances[bucket.indices] = part.to(distances)

    def distances(self) -> Tensor:
        """‖x − c‖ of each parameter, float64, [P]; 0 for a finite one without a centre."""
        result = torch.zeros(len(self._layout.parameters), dtype=torch.float64, device=self._layout.device)
        for number in range(len(self._layout.buckets)):
            self.pull_bucket_(number, 0.0, result)
        if not self._center.complete:
            result.mul_(self._layout.numbers([float(self._center.has(index)) for index in range(len(result))]))
        return result

    def _of_parameters(self, strength: float | Tensor) -> list[Tensor]:
        """A strength as one number a parameter, for each bucket; 0 where there is no centre."""
        if isinstance(strength, Tensor):
            return [ones * strength for ones in self._of_parameters(1.0)]
        if self._version != self._center.version:
            self._strengths.clear()
            self._version = self._center.version
        if strength not in self._strengths:
            self._strengths[strength] = [
                self._layout.numbers([strength if self._center.has(index) else 0.0 for index in bucket.members])
                for bucket in self._layout.buckets
            ]
        return self._strengths[strength]


class Snapshot:
    """x_t: the parameters of some buckets when a round started that training overlaps with."""

    def __init__(self, layout: Layout, center: Center, buckets: Sequence[int]) -> None:
        self._layout, self._center = layout, center
        self._flat = {number: layout.buckets[number].new_buffer() for number in buckets}
        for number, buffer in self._flat.items():
            layout.buckets[number].copy_to(buffer)

    def pull_bucket_(self, number: int, strength: float | Tensor) -> Tensor:
        """x ← x + strength·(c − x_t) for one bucket, whose snapshot is used up; returns ‖c − x_t‖, float64, [1]."""
        bucket, moved = self._layout.buckets[number], self._flat.pop(number)
        torch.sub(self._center.buffers[number], moved, out=moved)
        distance: Tensor = torch.linalg.vector_norm(moved, dtype=torch.float64)
        with untold(bucket.parameters):
            if isinstance(strength, Tensor):
                torch._foreach_add_(bucket.parameters, bucket.views(moved.mul_(strength)))
            else:
                torch._foreach_add_(bucket.parameters, bucket.views(moved), alpha=strength)
        return distance[None]
