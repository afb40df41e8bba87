"""Paired differences: intervals by bootstrap, tests by sign flips, and Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

EXACT_UP_TO = 14  # pairs: 2^14 flips


def bootstrap(differences: Sequence[float], resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95% interval of the mean: percentiles of the means of resampled differences.

    Args:
        differences: at least one.
        resamples: how often they are drawn, with replacement.
        seed: of the drawing.
    """
    values = np.asarray(differences, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def sign_flips(differences: Sequence[float], flips: int = 2**EXACT_UP_TO, seed: int = 0) -> float:
    """Two-sided p of a mean of zero, where each difference might as well have had the other sign.

    All flips are tried for up to 14 differences, of which the one that was seen is one; of more, so many at random
    and beside them the one that was seen.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count <= EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, count))
        signs[0] = 1.0
    sums = np.abs(signs @ values)
    tolerance = 2.0**-50 * count * np.abs(values).max()  # sums in another order: a rounding an addition
    return float((sums >= sums[0] - tolerance).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down p-values, in the order given: reject where one is below α, and some error has probability ≤ α.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted
