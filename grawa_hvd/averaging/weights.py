"""Weights that are inversely proportional to scores, without overflow or underflow."""

from __future__ import annotations

import torch
from torch import Tensor

from grawa_hvd.errors import AllWorkersDivergedError


def inverse_weights(scores: Tensor, floor: float = 0.0) -> Tensor:
    """Weights inversely proportional to the scores, columns summing to 1: β[m] = (1/s[m]) / Σ_j (1/s[j]).

    Args:
        scores: non-negative, shape [workers, layers]. Rows with NaN or Inf get weight 0; a worker has a finite row.
        floor: see `raise_to_floor`.

    Returns:
        Weights of the same shape and device. Scores of zero share all the weight of their column, which is the limit.
    """
    return _inverse(scores, _present(scores).expand_as(scores), floor)


def inverse_norm_weights(scores: Tensor, floor: float = 0.0) -> Tensor:
    """The same of gradient norms, where zero says nothing (paper, eqs. 2, 4, 7): such a layer is dead, not at its goal.

    Args:
        scores: non-negative gradient-norm scores, shape [workers, layers]. Rows with NaN or Inf get weight 0.
        floor: see `raise_to_floor`.

    Returns:
        Weights of the same shape and device. Zero scores get weight 0, unless a whole column is zero: 1/workers.

    Raises:
        AllWorkersDivergedError: if no worker has a finite score.
    """
    present = _present(scores)
    if not present.any():
        raise AllWorkersDivergedError.of(len(scores))
    informative = present & (scores > 0)
    return _inverse(scores, torch.where(informative.any(dim=0), informative, present), floor)


def _present(scores: Tensor) -> Tensor:
    return scores.isfinite().all(dim=1, keepdim=True)


def _inverse(scores: Tensor, counted: Tensor, floor: float) -> Tensor:
    scores = raise_to_floor(scores, floor, counted)
    # smallest / score lies in [0, 1] whatever the scale of the scores: 1 / score would over- or underflow.
    smallest = torch.where(counted, scores, torch.inf).amin(dim=0)
    ratio = torch.where(scores == smallest, 1.0, smallest / scores)
    inverse = torch.where(counted, ratio, 0.0)
    return inverse / inverse.sum(dim=0)


def raise_to_floor(scores: Tensor, floor: float, counted: Tensor) -> Tensor:
    """Raise each score to at least `floor` times its column's median, which bounds the ratio of weights.

    Args:
        scores: [workers, layers].
        floor: 0 (nothing changes) to 1.
        counted: which of the scores say something, bool, [workers, layers]; the others stay as they are.
    """
    if floor == 0 or scores.numel() == 0:
        return scores
    median = torch.where(counted, scores, torch.nan).nanquantile(0.5, dim=0)
    return torch.where(counted & (scores < floor * median), floor * median, scores)
