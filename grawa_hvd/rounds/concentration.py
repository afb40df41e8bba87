"""A warning where weights by gradient norms stay on few workers."""

from __future__ import annotations

import warnings

from torch import Tensor

from grawa_hvd.averaging.norms import NormAveraging
from grawa_hvd.caller import stacklevel
from grawa_hvd.scores import HeldOutScores
from grawa_hvd.settings import Settings
from grawa_hvd.transport.base import Transport

ROUNDS = 3  # in one round a worker may have had easy batches


class Concentration:
    """Watches the effective number of workers, 1/Σ_m β[m]², on average over layers.

    It warns once where that stays below half of the workers for `ROUNDS` rounds running. Of two workers it never does.
    Policies of other scores, and scores on a batch that all workers share, may well pick few workers for good reasons.

    Args:
        settings: what the user asked for.
        transport: the workers, for the message.
    """

    def __init__(self, settings: Settings, transport: Transport) -> None:
        mix, held_out = settings.recipe.mix, isinstance(settings.source, HeldOutScores)
        self._watched = mix if isinstance(mix, NormAveraging) and not held_out else None
        self._transport, self._running = transport, 0

    def watch(self, weights: Tensor, workers: int) -> None:
        """Take in the weights of a round.

        Args:
            weights: β, [M, its layers].
            workers: how many of the M take part and have not diverged.
        """
        if self._watched is None:
            return
        effective = float(weights.square().sum(dim=0).reciprocal().mean())
        self._running = self._running + 1 if workers > 2 and effective < workers / 2 else 0
        if self._running == ROUNDS:
            self._warn(self._watched, effective, weights.mean(dim=1), workers)
            self._watched = None

    def _warn(self, mix: NormAveraging, effective: float, share: Tensor, workers: int) -> None:
        order = share.argsort(descending=True)
        fewest = int((share[order].cumsum(dim=0) <= 0.5).sum()) + 1  # that have more than half together
        leaders = sorted(order[:fewest].tolist())
        name = type(mix).__name__
        bounded = f"averaging={name}(floor=1.0), " if mix.floor < 1 else ""
        warnings.warn(
            f"the weights of {name} stay on few workers: in {ROUNDS} rounds running they were as good as "
            f"{effective:.1f} of {workers} workers (1/Σβ², mean over layers), and {share[leaders].sum():.0%} of the "
            f"weight of the last was on {self._transport.label(leaders)}. A worker whose data is easy, as with few "
            "classes, has small gradients and takes over, which costs accuracy where workers' data differ. If yours "
            f"differ, use {bounded}scores=grawa_hvd.HeldOutScores(…) on a batch that all workers share, or "
            'averaging="uniform"',
            stacklevel=stacklevel(),
        )
