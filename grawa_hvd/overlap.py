"""Rounds behind training: x_t, the parameters that a round started from, and the pull once its sum has come."""

from __future__ import annotations

import torch
from torch import Tensor

from grawa_hvd.consensus import Center
from grawa_hvd.layers import Layout


class Snapshot:
    """The parameters of some buckets as they are now, x_t, one flat buffer a bucket."""

    def __init__(self, layout: Layout, buckets: list[int]) -> None:
        self._layout = layout
        self._flat = {number: layout.buckets[number].new_buffer() for number in buckets}
        for number, buffer in self._flat.items():
            table = layout.buckets[number].table
            table.pack(torch.ones(len(layout.buckets[number].members), device=buffer.device), buffer)

    def pull_bucket_(self, center: Center, number: int, strength: float) -> Tensor:
        """x ← x + strength·(c − x_t) for one bucket, whose snapshot is used up; returns ‖c − x_t‖, float64, [1]."""
        bucket, moved = self._layout.buckets[number], self._flat.pop(number)
        torch.sub(center.part(number), moved, out=moved)
        torch._foreach_add_(bucket.parameters, bucket.views(moved), alpha=strength)
        distance: Tensor = torch.linalg.vector_norm(moved, dtype=torch.float64)
        return distance[None]
