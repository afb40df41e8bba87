"""What a user asked for: the arguments check themselves, and are told to the other ranks."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from grawa_hvd.averaging.policy import Column, Mix, Recipe
from grawa_hvd.averaging.registry import policy
from grawa_hvd.caller import stacklevel
from grawa_hvd.checked import check_choice, check_integer, check_number, plain_number
from grawa_hvd.description import described
from grawa_hvd.model.buffers import Buffers
from grawa_hvd.model.cut import Groups, validated_groups
from grawa_hvd.rounds.outer import OuterFactory, momentum
from grawa_hvd.rounds.schedule import Due, Period, Schedule
from grawa_hvd.scores import FreshScores, LocalScores, Scores, scores_source
from grawa_hvd.transport.wire import Wire

# The settings that are numbers, or may be.
NUMBERS = (
    "period", "pull", "proximity", "outer_momentum", "groups", "overlap", "fragments", "local_period", "warmup_steps",
    "optimizer_state_period",
)  # fmt: skip


@dataclass
class Settings:
    """The arguments of `DistributedGrawaOptimizer` that govern the averaging; see there.

    Attributes:
        recipe: all that happens in a round; schedule: when rounds are due.
        source: where gradient norms come from.
        outer: how the centre moves, of the recipe or of the user; None if the average replaces it.
        starts_at_first_step: whether the centre starts at the parameters of the first step.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """

    averaging: str | Mix = "uniform"
    period: Period = 32
    pull: float = 0.5
    proximity: float = 0.01
    outer_momentum: float = 0.0
    outer_optimizer: OuterFactory | None = None
    scores: str | Callable[[], Any] | Scores = "local"
    layers: str = "parameter"
    groups: Groups = None
    overlap: int = 0
    fragments: int = 1
    local_period: int | None = None
    warmup_steps: int = 0
    optimizer_state: str = "keep"
    optimizer_state_period: int = 1
    buffers: Any = "keep"
    recipe: Recipe = field(init=False)
    source: Scores = field(init=False)
    schedule: Schedule = field(init=False)
    outer: OuterFactory | None = field(init=False)

    def __post_init__(self) -> None:
        for name in NUMBERS:
            setattr(self, name, plain_number(getattr(self, name)))
        averaging = policy(self.averaging)
        self.averaging, self.recipe = averaging, averaging.recipe()
        self.source = scores_source(self.scores)
        self._warn_of_unused_scores()
        self.groups = validated_groups(self.groups)
        self._check_schedule()
        most = None if callable(self.period) else self.period
        allowed = "at least 0" if most is None else f"from 0 to the period, {most}"
        check_number("pull", self.pull, lambda x: 0 <= x <= 1, "from 0 to 1")
        check_number("proximity", self.proximity, lambda x: x >= 0 and (most is None or x <= most), allowed)
        check_number("outer_momentum", self.outer_momentum, lambda x: 0 <= x < 1, "at least 0 and below 1")
        check_choice("layers", self.layers, "parameter", "module")
        check_choice("optimizer_state", self.optimizer_state, "keep", "average", "reset")
        if self.optimizer_state == "average" and self.overlap:
            raise ValueError(
                'optimizer_state="average" needs overlap=0: the average would undo the steps taken meanwhile'
            )
        check_integer("optimizer_state_period", self.optimizer_state_period, 1)
        self.buffers = self.buffers if isinstance(self.buffers, Buffers) else Buffers(self.buffers)
        self.pull, self.proximity = float(self.pull), float(self.proximity)
        self.outer_momentum = float(self.outer_momentum)
        self.outer = self._chosen_outer()
        if not self.has_common_center:
            self._refuse_what_needs_a_common_center()

    def _warn_of_unused_scores(self) -> None:
        """They are an effort, and a policy that goes by no norms takes none."""
        if not (self._goes_by_norms or isinstance(self.source, LocalScores)):
            warnings.warn(
                f"scores={type(self.source).__name__}(…) has no effect with averaging={type(self.averaging).__name__}, "
                'which goes by no gradient norms; averaging="lgrawa" does',
                stacklevel=stacklevel(),
            )

    def _check_schedule(self) -> None:
        if callable(self.period):
            check_integer("fragments", self.fragments, 1)
            check_integer("overlap", self.overlap, 0)
            local = 2**31
        else:
            check_integer("period", self.period, 1)
            check_integer("fragments", self.fragments, 1, self.period)
            # A fragment's round is over before its next one starts.
            check_integer("overlap", self.overlap, 0, self.period - 1)
            local = self.period - 1
        if self.local_period is not None:
            check_integer("local_period", self.local_period, 1, local)
        check_integer("warmup_steps", self.warmup_steps, 0)
        self.schedule = Schedule(self.period, self.fragments, self.local_period or 0, self.warmup_steps)

    def _chosen_outer(self) -> OuterFactory | None:
        momentum_ = momentum(self.outer_momentum) if self.outer_momentum else None
        given = {
            "outer_optimizer": self.outer_optimizer,
            "outer_momentum": momentum_,
            f"averaging={type(self.averaging).__name__}": self.recipe.outer,
        }
        chosen = {name: factory for name, factory in given.items() if factory is not None}
        if len(chosen) > 1:
            raise ValueError(f"only one of these can move the centre, but there are {' and '.join(chosen)}")
        self._outer_text = None if self.outer_optimizer is None else _checked_outer(self.outer_optimizer)
        return next(iter(chosen.values()), None)

    def _refuse_what_needs_a_common_center(self) -> None:
        name = type(self.averaging).__name__
        if self.recipe.outer is not None or self.recipe.starts_at == "first step":
            raise ValueError(f"the recipe of {name} must not move a centre: with neighbors, each worker has its own")
        for option in ("outer_momentum", "outer_optimizer", "local_period"):
            if value := getattr(self, option):
                raise ValueError(
                    f"{option} must be left out with averaging={name}, but is {value!r}: each worker averages with "
                    "its neighbors, and there is no centre of all"
                )

    def check_over(self, wire: Wire) -> None:
        """Whether these workers can average so.

        Raises:
            ValueError: naming the argument that stands in the way.
        """
        if self.schedule.local_period:
            wire.transport.check_subgroups()
        if wire.transport.is_member and wire.transport.size > 1:
            self.recipe.mix.check(wire.transport.size)
        if not (self.has_common_center or wire.is_plain):
            raise ValueError(
                f"compression must be Compression.none with averaging={type(self.averaging).__name__}, but is "
                f"{wire.compression}: what is compressed are differences from a centre of all, and there is none"
            )

    @property
    def has_common_center(self) -> bool:
        """Whether all workers have one centre; with neighbors, each has its own."""
        return self.recipe.exchange == "sum"

    @property
    def observes_steps(self) -> bool:
        """Whether the policy goes by the gradient norms of local steps."""
        return self._goes_by_norms and isinstance(self.source, LocalScores)

    @property
    def fresh(self) -> FreshScores | None:
        """Where the policy's gradient norms come from if a round takes them; None if it has no such."""
        return self.source if self._goes_by_norms and isinstance(self.source, FreshScores) else None

    @property
    def _goes_by_norms(self) -> bool:
        return Column.NORMS in self.recipe.mix.needs

    def copied(self, memo: dict[int, Any]) -> Settings:
        """The same of a model that `copy.deepcopy` is copying; what calls into the user's script stays that."""
        result = copy.copy(self)
        result.groups, result.buffers = copy.deepcopy((self.groups, self.buffers), memo)
        return result

    @property
    def starts_at_first_step(self) -> bool:
        """Whether the centre starts at the parameters of the first step."""
        return self.outer_optimizer is not None or self.recipe.starts_at == "first step"

    def overlaps(self, due: Due) -> bool:
        """Whether training goes on before a round is finished: not while it warms up, within a host or now."""
        return self.overlap > 0 and not (due.within_host or due.warm_up or due.now)

    def describe(self) -> list[str]:
        """A line each: what ranks must agree on."""
        values: dict[str, Any] = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.init and one.name not in ("groups", "buffers")
        }
        assert isinstance(self.averaging, Mix)
        values["averaging"] = self.averaging.describe()
        values["scores"] = f"{type(self.source).__name__}(decay={self.source.decay})"
        values["outer_optimizer"] = self._outer_text
        lines = [f"{name}={value if isinstance(value, str) else described(value)}" for name, value in values.items()]
        return [*lines, *self.buffers.describe()]


def _checked_outer(factory: Any) -> str:
    """What ranks compare of an outer optimizer, once the user's function has made one."""
    try:
        made = factory([torch.nn.Parameter(torch.zeros(1, device="cpu"))])
    except Exception as error:
        raise ValueError(
            f"outer_optimizer must return an optimizer of the parameters that it is given, but raised {error!r}"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(
            "outer_optimizer must be a function of parameters that returns a torch.optim.Optimizer, but returned "
            f"{made!r}"
        )
    return f"{type(made).__name__}({described(made.defaults)})"
