"""This worker's copy of the model as it is laid out: the layout, and all that goes by it."""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.agreement import Terms
from grawa_hvd.communicator import Communicator
from grawa_hvd.companion import Companion, is_fit_for_companion
from grawa_hvd.consensus import Center
from grawa_hvd.layers import Layout, averaged, membership
from grawa_hvd.scores import NormEstimate
from grawa_hvd.settings import Settings


class Replica:
    """A model, laid out.

    Args:
        names: the optimizer's parameters with their names; those that are trained, or are in `already`, are averaged.
        settings: what the user asked for.
        communicator: the workers.
        age: what the companion starts from.
        already: parameters that have been averaged before.

    Attributes:
        layout: the parameters that are averaged.
        center: where the workers met last; estimate: of the layers' gradient norms.
        companion: what goes with every meeting; None where the model or the settings do not allow it.
        terms: all that the ranks must agree on.
    """

    def __init__(
        self,
        names: dict[Tensor, str],
        settings: Settings,
        communicator: Communicator,
        age: int = 0,
        already: frozenset[int] = frozenset(),
    ) -> None:
        self._settings, self._communicator, self._age = settings, communicator, age
        self._parameters, self._looks = list(names), _looks(names)
        trained = averaged(names, already)
        self._built_from = membership(trained)
        layout = Layout(trained, settings.layers, settings.groups, settings.schedule.fragments)
        self.layout = layout
        self.center = Center(layout, settings.outer_momentum, communicator.halves, settings.overlap > 0)
        self.estimate = NormEstimate(len(layout.layer_names), settings.scores.decay, layout.device)
        self.companion = self._new_companion()
        self.terms = Terms(settings.describe(), communicator.describe(), layout.describe())

    def _new_companion(self) -> Companion | None:
        averaging, schedule = self._settings.averaging, self._settings.schedule
        whole = schedule.fragments == 1 and not schedule.local_period and not self._settings.overlap
        if whole and self._communicator.exact and is_fit_for_companion(self.layout, averaging):
            return Companion(self.layout, averaging, self._age)
        return None

    @cached_property
    def host_center(self) -> Center:
        """Where the workers of this host met last."""
        return Center(self.layout)

    @property
    def next_age(self) -> int:
        """Greater than the age of any companion so far."""
        return self._age if self.companion is None else self.companion.age + 1

    def is_of(self, names: dict[Tensor, str]) -> bool:
        """Whether the parameters that are averaged are the same, and lie as they did when they were laid out."""
        looks = _looks(names)
        same = len(names) == len(self._parameters) and all(map(operator.is_, names, self._parameters))
        if same and looks == self._looks:
            return True
        if membership(averaged(names, self._averaged_already())) != self._built_from:
            return False
        self._parameters, self._looks = list(names), looks
        return True

    def _averaged_already(self) -> frozenset[int]:
        return frozenset(map(id, self.layout.parameters))

    def laid_out_anew(self, names: dict[Tensor, str]) -> Replica:
        """The replica of a model whose parameters were added to, unfrozen, moved or cast: all that is known stays."""
        result = Replica(names, self._settings, self._communicator, self.next_age, self._averaged_already())
        numbers = {id(parameter): number for number, parameter in enumerate([*names, *self.layout.parameters])}
        result.load(self.state(numbers), numbers)
        return result

    def named_center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the centre; None before the first round."""
        if not self.center.known:
            return None
        return {self.layout.names[index]: tensors["center"] for index, tensors in self.center.state().items()}

    def state(self, numbers: dict[int, int]) -> dict[str, Any]:
        """Centre and estimates, for a checkpoint.

        Args:
            numbers: id of a parameter → its number there.
        """
        parameters = self.layout.parameters
        return {
            "state": {numbers[id(parameters[index])]: kept for index, kept in self.center.state().items()},
            "estimates": self.estimate.state(self.layout.layer_names),
        }

    def load(self, state: dict[str, Any], numbers: dict[int, int]) -> None:
        """Take over what `state` returned, parameter by its number and layer by its name.

        Raises:
            ValueError: if a shape differs.
        """
        index_of = {numbers[id(parameter)]: index for index, parameter in enumerate(self.layout.parameters)}
        self.center.load({index_of[number]: kept for number, kept in state["state"].items() if number in index_of})
        self.estimate.load(self.layout.layer_names, state["estimates"])


def _looks(names: dict[Tensor, str]) -> list[tuple[int, bool, torch.dtype, torch.device, torch.Size, tuple[int, ...]]]:
    """All of each parameter that can make it lie otherwise, or be averaged at all: what is cheap to look at."""
    return [(p.data_ptr(), p.requires_grad, p.dtype, p.device, p.shape, p.stride()) for p in names]
