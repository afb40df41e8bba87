"""LSGD: all weight to the leader (Teng et al., "Leader Stochastic Gradient Descent", NeurIPS 2019)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Mixing, Observed, Scored


@dataclass(frozen=True)
class LSGD(Scored):
    """The worker whose loss was least has all the weight; its model is the centre, toward which all are pulled.

    Each worker reports losses (`optimizer.report(loss=...)`). A worker's score is the mean, over the last rounds, of
    the mean loss that it reported before each. Ties go to the lowest rank; who has reported nothing cannot lead. With
    `local_period` (the paper takes τ/4) the workers of a host follow a leader of their own between the rounds of all:
    the one whose loss since the last round was least.

    Args:
        window: of so many rounds of all workers losses are remembered, at least 1.

    Raises:
        ValueError: if `window` is no integer of at least 1.
    """

    window: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be an integer of at least 1, but is {self.window!r}")

    def init(self, workers: int, layers: int) -> Tensor:
        """No losses yet: [window, M], NaN."""
        return torch.full((self.window, workers), torch.nan, dtype=torch.float64)

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """See `Mix`; what is remembered are the losses of the last rounds, [window, M], the newest last."""
        recent = torch.cat([state[1:], observed.losses[None]])
        mixing, _ = super().__call__(replace(observed, losses=recent.nanmean(dim=0)), ())
        return mixing, recent

    def scores(self, observed: Observed) -> Tensor:
        """The mean losses, the same for every layer."""
        return observed.losses[:, None].expand_as(observed.norms)

    def weights(self, scores: Tensor) -> Tensor:
        """1 for the least score of the lowest rank, 0 for all others."""
        leader = scores.nan_to_num(nan=torch.inf)[:, :1].argmin(dim=0)
        return torch.zeros_like(scores).index_fill(0, leader, 1.0)
