"""The centre: where the workers met last, and which parameters have been averaged at all."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from grawa_hvd.model.flat import FlatBuffers
from grawa_hvd.model.layout import Layout


class Center:
    """c[l], in one flat buffer a bucket.

    Args:
        layout: the parameters.

    Attributes:
        buffers: the flat centre of each bucket; zeros where a parameter has none.
        version: grows whenever other parameters have a centre than before.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._flat = FlatBuffers(layout)
        self._missing = set(range(len(layout.parameters)))
        self.version = 0

    @property
    def buffers(self) -> list[Tensor]:
        """The flat centre of each bucket."""
        return self._flat.buffers

    @property
    def known(self) -> bool:
        """Whether any parameter has a centre to be pulled to."""
        return len(self._missing) < len(self._layout.parameters)

    @property
    def complete(self) -> bool:
        """Whether all parameters have one."""
        return not self._missing

    def has(self, index: int) -> bool:
        """Whether a parameter has a centre."""
        return index not in self._missing

    def has_all(self, members: Iterable[int]) -> bool:
        """Whether each of some parameters has one."""
        return self._missing.isdisjoint(members)

    def note(self, members: Iterable[int]) -> None:
        """Some parameters have a centre from now on."""
        if not self._missing.isdisjoint(members):
            self._missing.difference_update(members)
            self.version += 1

    def forget(self) -> None:
        """Have no centre, as after a round that broke off and left parts of sums behind."""
        self._flat.zero_()
        self._missing = set(range(len(self._layout.parameters)))
        self.version += 1

    def parts(self) -> list[Tensor | None]:
        """Each parameter's part of the flat centre, [its elements]; None for one without a centre."""
        return [part if self.has(index) else None for index, part in enumerate(self._flat.parts())]

    def views(self) -> list[Tensor]:
        """Each parameter's part in its own shape, zeros for one without a centre."""
        return self._flat.views()

    def state(self) -> dict[int, Tensor]:
        """Parameter index → its part in its own shape (a view), for those that have one."""
        return {index: view for index, view in enumerate(self._flat.views()) if self.has(index)}

    def load(self, state: dict[int, Tensor]) -> None:
        """Take over what `state` returned, here or in another process; parameters that it lacks have no centre.

        Raises:
            ValueError: if a shape differs.
        """
        views = self._flat.views()
        for index, saved in state.items():
            check_shape(saved, views[index], f"the center of {self._layout.names[index]}")
            views[index].copy_(saved)
        self.note(state)


def check_shape(saved: Tensor, own: Tensor, what: str) -> None:
    """Whether a tensor of a checkpoint fits.

    Raises:
        ValueError: if its shape differs.
    """
    if saved.shape != own.shape:
        raise ValueError(
            f"{what} has shape {tuple(saved.shape)} in the checkpoint, and {tuple(own.shape)} in this model"
        )
