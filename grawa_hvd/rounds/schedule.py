"""When rounds are due: of which part of the model, and among which workers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

from grawa_hvd.rounds.rows import Progress

Period = int | Callable[[Progress], int]


@dataclass(frozen=True)
class Due:
    """A round that is due.

    Attributes:
        fragment: the part of the model that is averaged; None for all of it.
        within_host: whether the workers of each host average among themselves.
        warm_up: whether all workers become their plain mean.
        now: whether it was asked for, outside the period: it is over before training goes on.
    """

    fragment: int | None = None
    within_host: bool = False
    warm_up: bool = False
    now: bool = False


@dataclass(frozen=True)
class Schedule:
    """Rounds within a cycle of τ local steps.

    Each of the fragments has a round of its own once a cycle, staggered by τ / fragments, the last one at the cycle's
    end (Douillard et al., "Streaming DiLoCo", 2025). Workers of a host average every `local_period` steps besides,
    where no other round is due (LSGD: Teng et al., NeurIPS 2019). Before the first cycle, the workers become their mean
    after each of `warm_up` steps (post-local SGD: Lin et al., ICLR 2020).

    Args:
        period: τ, or what gives the τ of a cycle from a worker's progress when the cycle begins.
        fragments: F, from 1 to τ.
        local_period: τ_l, below τ; 0 for no rounds within hosts.
        warm_up: how many steps.
    """

    period: Period
    fragments: int = 1
    local_period: int = 0
    warm_up: int = 0

    def length(self, progress: Progress) -> int:
        """τ of the cycle that begins here, as this worker says: what the furthest worker says holds for all.

        Raises:
            ValueError: if the user's function returns no integer.
        """
        if not callable(self.period):
            return self.period
        length = self.period(progress)
        if not hasattr(length, "__index__"):
            raise ValueError(f"period must return an integer, but returned {length!r}")
        return operator.index(length)

    def check(self, length: int, overlap: int) -> None:
        """Whether a cycle can be so long.

        Raises:
            ValueError: if it is no integer, or has no room for the fragments, the overlap or rounds within hosts.
        """
        least = max(1, self.fragments, overlap + 1, self.local_period + 1)
        if length < least:
            raise ValueError(f"period must return an integer of at least {least}, but returned {length}")

    def due(self, steps: int, since_round: int, length: int) -> Due | None:
        """What is due after a step.

        Args:
            steps: local steps in all, with this one.
            since_round: steps of this cycle, from 1 to τ; 0 stands for τ.
            length: τ of this cycle.
        """
        if steps <= self.warm_up:
            return Due(warm_up=True)
        since = since_round or length
        # Fragment f is due at step ⌈(f+1)·τ/F⌉.
        fragment = since * self.fragments // length - 1
        if fragment >= 0 and since == -(-(fragment + 1) * length // self.fragments):
            return Due(fragment if self.fragments > 1 else None)
        if self.local_period and since % self.local_period == 0:
            return Due(within_host=True)
        return None
