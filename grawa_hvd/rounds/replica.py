"""This worker's copy of the model as it is laid out: the layout, and all that goes by it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import grawa_hvd
from grawa_hvd.model.holes import Holes
from grawa_hvd.model.layout import Layout
from grawa_hvd.model.names import averaged
from grawa_hvd.rounds.agreement import Terms
from grawa_hvd.rounds.center import Center
from grawa_hvd.rounds.exchange import Exchange
from grawa_hvd.rounds.neighbors import Neighbors
from grawa_hvd.rounds.outer import Outer, Replace, TorchOuter
from grawa_hvd.rounds.pull import Constant, Puller
from grawa_hvd.rounds.round import Rooms
from grawa_hvd.scores import NormEstimate
from grawa_hvd.settings import Settings
from grawa_hvd.transport.wire import Wire


class Replica:
    """A model, laid out.

    Args:
        names: the optimizer's parameters with their names; those that are trained, or are in `already`, are averaged.
        settings: what the user asked for.
        wire: how the model travels.
        before: the model as it was laid out before, if it was.

    Attributes:
        layout: the parameters that are averaged; first: one of them, where there are any.
        rooms: what rounds of all workers work on.
        estimate: of the layers' gradient norms.
        holes: what was infinite when training began.
        terms: all that the ranks must agree on.
    """

    def __init__(self, names: dict[Tensor, str], settings: Settings, wire: Wire, before: Replica | None = None) -> None:
        self._settings, self._wire = settings, wire
        self._names, self._looks = names, _looks(names)
        trained = averaged(names, frozenset() if before is None else before._averaged_already())
        self._built_from = _membership(trained)
        layout = Layout(trained, settings.layers, settings.groups, settings.schedule.fragments)
        self.layout = layout
        self.first = layout.parameters[0] if layout.parameters else torch.empty(0, device="cpu")
        self.rooms = self._new_rooms()
        self._plain_rooms: dict[str, Rooms] = {}
        self.estimate = NormEstimate(len(layout.layer_names), settings.source.decay, layout.device)
        self.holes = Holes() if layout.refusal else Holes(layout.parameters, layout.table.norms())
        if before is not None:  # what is infinite now may have diverged
            self.holes = self.holes.kept(before.holes, before.sizes)
        own = [f"grawa_hvd={grawa_hvd.__version__}"]
        lines = [*layout.describe(), *self.holes.describe(trained)]
        self.terms = Terms(own, settings.describe(), wire.describe(), lines, names=layout.names)

    def _new_rooms(self) -> Rooms:
        settings, layout, center = self._settings, self.layout, Center(self.layout)
        factory, pull = settings.outer, settings.recipe.pull or Constant(settings.pull)
        outer: Outer = Replace(center) if factory is None else TorchOuter(factory, layout, center)
        keeps_old = factory is not None or settings.overlap > 0 or pull.anchor == "old" or self._wire.small is not None
        exchange: Exchange | Neighbors = (
            Exchange(layout, center, self._wire, in_place=not keeps_old)
            if settings.has_common_center
            else Neighbors(layout, center, self._wire.transport)
        )
        return Rooms(layout, center, exchange, outer, pull, Puller(layout, center))

    def plain_rooms(self, name: str, wire: Wire, part: float) -> Rooms:
        """What rounds work on that move no centre of all workers: within a host, and while training warms up.

        Args:
            name: which of them.
            wire: to the workers that take part.
            part: how far they are pulled toward their average.
        """
        if name not in self._plain_rooms:
            layout, center = self.layout, Center(self.layout)
            exchange = Exchange(layout, center, wire, in_place=True)
            puller = Puller(layout, center)
            self._plain_rooms[name] = Rooms(layout, center, exchange, Replace(center), Constant(part), puller)
        return self._plain_rooms[name]

    def forget_plain_rooms(self) -> None:
        """Make them anew when they are asked for, as with other workers."""
        self._plain_rooms.clear()

    def is_of(self, names: dict[Tensor, str]) -> bool:
        """Whether the parameters that are averaged are the same, and lie as they did when they were laid out.

        Args:
            names: parameter → name; the same object while the optimizer's groups hold the same.
        """
        looks = _looks(names)
        if names is self._names and looks == self._looks:
            return True
        if _membership(averaged(names, self._averaged_already())) != self._built_from:
            return False
        self._names, self._looks = names, looks
        return True

    def _averaged_already(self) -> frozenset[int]:
        return frozenset(map(id, self.layout.parameters))

    def laid_out_anew(self, names: dict[Tensor, str]) -> Replica:
        """The replica of a model whose parameters were added to, unfrozen, moved, cast, or changed their shapes.

        All that is known stays, but of a parameter of another shape.
        """
        result = Replica(names, self._settings, self._wire, self)
        numbers = {id(parameter): number for number, parameter in enumerate([*names, *self.layout.parameters])}
        state = self.state(numbers)
        for parameter, size in self.sizes.items():
            if parameter.shape != size:
                state["state"].pop(numbers[id(parameter)], None)
        result.load(state, numbers)
        return result

    @property
    def sizes(self) -> dict[Tensor, torch.Size]:
        """Parameter → its shape when the model was laid out."""
        return {
            p: size for bucket in self.layout.buckets for p, size in zip(bucket.parameters, bucket.sizes, strict=True)
        }

    def named_center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the centre; None before the first round."""
        center = self.rooms.center
        return {self.layout.names[index]: part for index, part in center.state().items()} if center.known else None

    def state(self, numbers: dict[int, int]) -> dict[str, Any]:
        """Centre, outer state, residuals and estimates, for a checkpoint.

        Args:
            numbers: id of a parameter → its number there.
        """
        outer, residuals = self.rooms.outer.state(), self.rooms.exchange.state()
        kept: dict[int, dict[str, Any]] = {}
        for index, center in self.rooms.center.state().items():
            own = kept[numbers[id(self.layout.parameters[index])]] = {"center": center}
            if index in outer:
                own["outer"] = outer[index]
            if index in residuals:
                own["residual"] = residuals[index]
        return {"state": kept, "estimates": self.estimate.state(self.layout.layer_names)}

    def load(self, state: dict[str, Any], numbers: dict[int, int]) -> None:
        """Take over what `state` returned, parameter by its number and layer by its name.

        Raises:
            ValueError: if a shape differs.
        """
        index_of = {numbers[id(parameter)]: index for index, parameter in enumerate(self.layout.parameters)}
        kept = {index_of[number]: own for number, own in state["state"].items() if number in index_of}
        self.rooms.center.load({index: own["center"] for index, own in kept.items()})
        self.rooms.exchange.load({index: own["residual"] for index, own in kept.items() if "residual" in own})
        self.rooms.outer.load({index: own["outer"] for index, own in kept.items() if "outer" in own})
        self.estimate.load(self.layout.layer_names, state["estimates"])


Look = tuple[int, bool, torch.dtype, torch.device, torch.Size, tuple[int, ...]]


def _looks(names: dict[Tensor, str]) -> list[Look]:
    """What is cheap to compare, and tells whether a parameter is averaged and where it lies."""
    return [(p.data_ptr(), p.requires_grad, p.dtype, p.device, p.shape, p.stride()) for p in names]


def _membership(names: Iterable[Tensor]) -> list[tuple[int, torch.dtype, torch.device, torch.Size, tuple[int, ...]]]:
    """What a layout is built from, to notice when it is out of date."""
    return [(id(p), p.dtype, p.device, p.shape, p.stride()) for p in names]
