"""The averages that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from experiments.conditions import WORKERS, Condition
from grawa_hvd.averaging import LGRAWA, MGRAWA, EDiT, MedianCap, Uniform, Weighted
from grawa_hvd.averaging.policy import Mix, Mixing, Observed, Recipe


@dataclass(frozen=True)
class Arm:
    """One average.

    Attributes:
        title: for tables and plots.
        mix: the policy, for a condition.
        scores: where norms are taken.
        trains_on_held_out: whether each worker has the held-out batch among its training data.
        runs_in: whether there is something to compare in a condition.
    """

    title: str
    mix: Callable[[Condition], Mix]
    scores: Literal["local", "fresh", "held out"] = "local"
    trains_on_held_out: bool = False
    runs_in: Callable[[Condition], bool] = lambda condition: True


@dataclass(frozen=True)
class Shuffled(Mix):
    """The weights of another policy, dealt out to the workers at random in each round.

    Args:
        mix: the other policy.
        seed: of the dealing.
    """

    mix: Mix
    seed: int = 0
    _generator: torch.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_generator", torch.Generator().manual_seed(self.seed))

    @property
    def needs(self) -> Any:  # type: ignore[override]
        """What the other policy needs."""
        return self.mix.needs

    def recipe(self) -> Recipe:
        """The weights alone."""
        return Recipe(self)

    def init(self, workers: int, layers: int) -> Any:
        """What the other policy remembers."""
        return self.mix.init(workers, layers)

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """See `Mix`. Workers that have diverged keep their weight of 0."""
        mixing, state = self.mix(observed, state)
        usable = observed.usable.nonzero().flatten()
        dealt = usable[torch.randperm(len(usable), generator=self._generator)]
        return mixing._replace(weights=mixing.weights.index_copy(0, usable, mixing.weights[dealt])), state


def inverse_loss(observed: Observed) -> Tensor:
    """∝ 1/loss, which here is that on the held-out batch."""
    return 1.0 / observed.losses.clamp(min=1e-6)


def oracle(condition: Condition) -> Mix:
    """0 for those whose data do harm."""
    good = torch.arange(WORKERS) >= condition.bad
    mix: Mix = Weighted(lambda observed: good)
    return mix


ARMS = {
    "uniform": Arm("uniform", lambda condition: Uniform()),
    "lgrawa": Arm("LGRAWA", lambda condition: LGRAWA(floor=0.0)),
    "lgrawa_floor1": Arm("LGRAWA, floor 1", lambda condition: LGRAWA(floor=1.0)),
    "mediancap": Arm("MedianCap", lambda condition: MedianCap()),
    "lgrawa_heldout": Arm("LGRAWA, held-out norms", lambda condition: LGRAWA(floor=0.0), "held out"),
    "loss_heldout": Arm("1/held-out loss", lambda condition: Weighted(inverse_loss)),
    "uniform_trains": Arm("uniform, trains on held-out", lambda condition: Uniform(), trains_on_held_out=True),
    "mgrawa_floor1": Arm("MGRAWA, floor 1", lambda condition: MGRAWA(floor=1.0)),
    "edit": Arm("EDiT", lambda condition: EDiT()),
    "lgrawa_shuffled": Arm("LGRAWA, shuffled", lambda condition: Shuffled(LGRAWA(floor=0.0))),
    "oracle": Arm("oracle", oracle, runs_in=lambda condition: condition.bad > 0),
    "samples": Arm("by samples", lambda condition: Weighted("samples"), runs_in=lambda condition: condition.slow > 0),
    "mgrawa": Arm("MGRAWA", lambda condition: MGRAWA(floor=0.0)),
    "mgrawa_heldout": Arm("MGRAWA, held-out norms", lambda condition: MGRAWA(floor=0.0), "held out"),
    "lgrawa_fresh": Arm("LGRAWA, fresh norms", lambda condition: LGRAWA(floor=0.0), "fresh"),
    "lgrawa_floor0.5": Arm("LGRAWA, floor .5", lambda condition: LGRAWA(floor=0.5)),
    "mgrawa_floor0.5": Arm("MGRAWA, floor .5", lambda condition: MGRAWA(floor=0.5)),
}
