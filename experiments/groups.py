"""Many seeds in one simulation: each has a group of workers, who average among themselves alone.

A local step of 8 small workers is all overhead, and one of 80 costs little more. So the workers of several seeds are
stacked, and a policy whose matrix of weights is made of blocks keeps them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from grawa_hvd.averaging.policy import Mix, Mixing, Observed, Recipe

Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Watch:
    """The stacked parameters of a simulation, to start each group from a model of its own and to look at the workers.

    Args:
        starts: what each group starts from, of one architecture.
        size: workers of a group.
        optimizer: of the local steps.
    """

    def __init__(self, starts: Sequence[nn.Module], size: int, optimizer: Optimizer) -> None:
        self._starts, self._size, self._factory = starts, size, optimizer
        self._parameters: list[nn.Parameter] = []

    @torch.no_grad()
    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The `optimizer=` of `simulate`, which tries it out on fewer parameters before it gives those of all."""
        if not self._parameters and len(parameters[0]) == self._size * len(self._starts):
            self._parameters = parameters
            for stacked, *own in zip(parameters, *(start.parameters() for start in self._starts), strict=True):
                stacked.copy_(torch.stack(own).repeat_interleave(self._size, dim=0))
        return self._factory(parameters)

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """What each worker's model says of the same inputs, [M, N, classes]."""
        names = [name for name, _ in self._starts[0].named_parameters()]
        stacked = {name: value.detach() for name, value in zip(names, self._parameters, strict=True)}
        said: Tensor = vmap(lambda own: functional_call(self._starts[0], own, (inputs,)))(stacked)
        return said


@dataclass(frozen=True)
class Groups(Mix):
    """Every `size` workers average with each other by one policy, and not with the others.

    Args:
        mix: the policy; it moves neither centre nor workers in a way of its own.
        size: workers of a group.
        told: what a round knows of the workers, changed before the policy sees it.

    Attributes:
        weights: β of each round so far, [M, L].
    """

    mix: Mix
    size: int
    told: Callable[[Observed], Observed] = field(compare=False)
    weights: list[Tensor] = field(init=False, default_factory=list, compare=False)

    @property
    def needs(self) -> Any:  # type: ignore[override]
        """What its policy needs."""
        return self.mix.needs

    def recipe(self) -> Recipe:
        """An exchange within the groups."""
        if self.mix.recipe() != Recipe(self.mix):
            raise ValueError(f"mix must leave centre and pull to the simulation, but {self.mix!r} does not")
        return Recipe(self, exchange="neighbors")

    def init(self, workers: int, layers: int) -> list[Any]:
        """What the policy remembers of each group."""
        return [self.mix.init(self.size, layers) for _ in range(workers // self.size)]

    def __call__(self, observed: Observed, state: list[Any]) -> tuple[Mixing, list[Any]]:
        """See `Mix`."""
        observed, after = self.told(observed), []
        weights, scores = torch.zeros_like(observed.norms), torch.zeros_like(observed.norms)
        blocks = observed.norms.new_zeros(len(weights), *weights.shape)
        for number, own in enumerate(state):
            begin, end = number * self.size, (number + 1) * self.size
            # The method of the base class: in a simulation, where all take part, the other one returns all.
            mixing, remembered = self.mix(Observed.of(observed, [*range(begin, end)]), own)
            after.append(remembered)
            weights[begin:end], scores[begin:end] = mixing.weights, mixing.scores
            blocks[begin:end, begin:end] = mixing.weights
        self.weights.append(weights)
        return Mixing(blocks, scores), after


def reported(observed: Observed, **values: Tensor) -> Observed:
    """The same, as if the workers had reported other values."""
    wide: dict[str, Any] = {name: value.double() for name, value in values.items()}
    return replace(observed, **wide)
