"""GRAWA: weights inverse to gradient norms (Dimlioglu & Choromanska, AISTATS 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Averaging, Observed
from grawa_hvd.averaging.weights import inverse_norm_weights


@dataclass(frozen=True)
class NormAveraging(Averaging):
    """A policy whose scores are gradient norms: a score of zero says nothing, for a dead layer has zero gradient.

    Args:
        floor: each norm counts as at least `floor` times its column's median, 0 to 1. At 1 no worker has more weight
            than the median one. At 0 the weights are the paper's: a worker whose data is easy may then take over.
    """

    floor: float = 1.0

    def weights(self, scores: Tensor) -> Tensor:
        """See `inverse_norm_weights`."""
        return inverse_norm_weights(scores, self.floor)


@dataclass(frozen=True)
class GRAWA(NormAveraging):
    """One weight a worker, from the norm of its whole gradient: s = sqrt(Σ_l ê²) (paper, section 4.3, eq. 2)."""

    def scores(self, observed: Observed) -> Tensor:
        """The norm over layers, computed relative to the largest so that squares cannot overflow."""
        norms = observed.norms
        largest = norms.amax(dim=1, keepdim=True)
        scale = torch.where(largest > 0, largest, 1.0)
        return ((norms / scale).square().sum(dim=1, keepdim=True).sqrt() * scale).expand_as(norms)


@dataclass(frozen=True)
class MGRAWA(NormAveraging):
    """One weight a worker, from the sum of its layers' gradient norms: s = Σ_l ê (paper, section 5.1, eqs. 3, 4)."""

    def scores(self, observed: Observed) -> Tensor:
        """The sum over layers."""
        return observed.norms.sum(dim=1, keepdim=True).expand_as(observed.norms)


@dataclass(frozen=True)
class LGRAWA(NormAveraging):
    """A weight for each layer of each worker, from that layer's gradient norm: s = ê (paper, section 5.2, eqs. 5–7)."""

    def scores(self, observed: Observed) -> Tensor:
        """The norms themselves."""
        return observed.norms
