"""When rounds are due: of which part of the model, and among which workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Due:
    """A round that is due.

    Attributes:
        fragment: the part of the model that is averaged; None for all of it.
        within_host: whether the workers of each host average among themselves.
    """

    fragment: int | None = None
    within_host: bool = False


@dataclass(frozen=True)
class Schedule:
    """Rounds within a cycle of `period` local steps.

    Each of the fragments has a round of its own once a cycle, staggered by period / fragments, the last one at the
    cycle's end (Douillard et al., "Streaming DiLoCo", 2025). Workers of a host average every `local_period` steps
    besides, where no other round is due (LSGD: Teng et al., NeurIPS 2019).

    Args:
        period: τ.
        fragments: F, from 1 to τ.
        local_period: τ_l, below τ; 0 for no rounds within hosts.
    """

    period: int
    fragments: int = 1
    local_period: int = 0

    def due(self, since: int) -> Due | None:
        """What is due after the step that is number `since` of the cycle, from 1 to τ; 0 stands for τ."""
        since = since or self.period
        # Fragment f is due at step ⌈(f+1)·τ/F⌉.
        fragment = since * self.fragments // self.period - 1
        if fragment >= 0 and since == -(-(fragment + 1) * self.period // self.fragments):
            return Due(fragment if self.fragments > 1 else None)
        if self.local_period and since % self.local_period == 0:
            return Due(within_host=True)
        return None
