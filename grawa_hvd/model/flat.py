"""Numbers beside the parameters: one flat buffer a bucket, and its parts in the shapes of the parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from grawa_hvd.model.layout import Layout


class FlatBuffers:
    """Zeros, one for each element of the parameters.

    Args:
        layout: the parameters.
        wide: float32 at least, whatever type the parameters have.

    Attributes:
        buffers: one flat buffer a bucket.
    """

    def __init__(self, layout: Layout, wide: bool = False) -> None:
        self._layout = layout
        self.buffers = [bucket.new_buffer() for bucket in layout.buckets]
        if wide:
            self.buffers = [buffer.to(wide_type(buffer.dtype)) for buffer in self.buffers]

    def zero_(self) -> None:
        """Set all to zero."""
        for buffer in self.buffers:
            buffer.zero_()

    def parts(self) -> list[Tensor]:
        """Each parameter's flat part, [its elements], in order of the parameters."""
        return self._by_parameter(flat=True)

    def views(self) -> list[Tensor]:
        """The same in the shapes and memory orders of the parameters."""
        return self._by_parameter(flat=False)

    def _by_parameter(self, flat: bool) -> list[Tensor]:
        found = sorted(self._pairs(flat), key=lambda pair: pair[0])
        return [part for _, part in found]

    def _pairs(self, flat: bool) -> Iterator[tuple[int, Tensor]]:
        for bucket, buffer in zip(self._layout.buckets, self.buffers, strict=True):
            yield from zip(bucket.members, bucket.split(buffer) if flat else bucket.views(buffer), strict=True)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums of such numbers are made: float64 for itself, float32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
