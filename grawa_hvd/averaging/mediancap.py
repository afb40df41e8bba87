"""MedianCap: a worker that went farther than the median counts for less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column, Observed, Scored


@dataclass(frozen=True)
class MedianCap(Scored):
    """β ∝ min(1, median_j d[j] / d[m]) for each layer, where d[m] = ‖x[m] − c‖ is the way from the last centre.

    So no worker moves the average by more than one that went the median's way: the rule by which Covenant-72B scales
    contributions. Before there is a centre, all count alike. Its sibling for gradient norms is `floor=1` of LGRAWA,
    MGRAWA and GRAWA: there, norms below the median count as the median.
    """

    needs: ClassVar[frozenset[Column]] = frozenset({Column.DISPLACEMENTS})

    def scores(self, observed: Observed) -> Tensor:
        """The distances d, [M, L]."""
        return observed.displacements

    def weights(self, scores: Tensor) -> Tensor:
        """See the class; who stayed where the centre is counts in full."""
        median = scores.nanquantile(0.5, dim=0)
        share = torch.where(scores <= median, 1.0, median / scores)
        counted = torch.where(scores.isfinite(), share, 0.0)
        return counted / counted.sum(dim=0)
