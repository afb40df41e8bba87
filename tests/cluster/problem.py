"""What the 12 workers learn: handwritten digits, from pairs of neighbouring pixels, by logistic regression.

An image of 8 × 8 pixels with values 0 to 16 has 56 pairs (left, right); each selects one of 17 × 17 weights a class:
161 850 parameters, enough that a round is most of what is on the wire, in sums of 57 terms. The loss is convex and a
step of at most 2 / L is a contraction, so that rounding errors add up and do not grow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Array = NDArray[np.float64]

WORKERS, BATCH, CLASSES = 12, 16, 10
VALUES = 17
PAIRS = 8 * 7
FEATURES = PAIRS * VALUES**2
# L ≤ ½ (PAIRS + 1) = 28.5: the features and the 1 of the bias, times the largest curvature of the cross-entropy.
LEARNING_RATE = 0.05


def shares() -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each worker, the images' pairs [N, 56] as numbers of features, and their labels [N].

    Sorted by label: every worker knows some of the digits only, and their gradients differ.
    """
    digits = load_digits()
    values = digits.images.astype(np.int64)
    pairs = (values[:, :, :-1] * VALUES + values[:, :, 1:]).reshape(-1, PAIRS) + np.arange(PAIRS) * VALUES**2
    order = np.argsort(digits.target, kind="stable")
    return [(pairs[mine], digits.target[mine].astype(np.int64)) for mine in np.array_split(order, WORKERS)]


def batch_of(size: int, worker: int, step: int) -> NDArray[np.int64]:
    """Which images of its share a worker takes in a step."""
    return np.random.default_rng([worker, step]).choice(size, BATCH, replace=False)


class Problem:
    """The gradients in float64, for the simulation."""

    def __init__(self) -> None:
        self.shares = shares()

    @staticmethod
    def start() -> list[Array]:
        return [np.zeros((FEATURES, CLASSES)), np.zeros(CLASSES)]

    def gradient(self, worker: int, step: int, parameters: list[Array]) -> tuple[float, list[Array]]:
        """Mean cross-entropy of softmax(Σ_pairs weights + bias), and its gradient."""
        weights, bias = parameters
        pairs, labels = self.shares[worker]
        chosen = batch_of(len(labels), worker, step)
        pairs, labels = pairs[chosen], labels[chosen]
        logits = weights[pairs].sum(axis=1) + bias
        logits -= logits.max(axis=1, keepdims=True)
        chances = np.exp(logits)
        chances /= chances.sum(axis=1, keepdims=True)
        loss = -np.log(chances[np.arange(BATCH), labels]).mean()
        error = chances
        error[np.arange(BATCH), labels] -= 1
        error /= BATCH
        to_weights = np.zeros_like(weights)
        np.add.at(to_weights, pairs, error[:, None, :])
        return float(loss), [to_weights, error.sum(axis=0)]
