"""Scikit-learn's digits of which a fifth of the training labels are wrong: something to overfit."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from experiments import digit_splits
from experiments.digit_splits import Pair

WRONG = 0.2


class NoisyDigits(NamedTuple):
    """Images and labels: right ones to choose by and to test, and to test also ones as wrong as those of training."""

    train: Pair
    validation: Pair
    test: Pair
    noisy_test: Pair


@functools.lru_cache(maxsize=32)
def load(seed: int) -> NoisyDigits:
    """The digits, divided and corrupted by the seed."""
    data = digit_splits.load(seed)
    generator = torch.Generator().manual_seed(seed)
    train, noisy_test = (
        (images, corrupted(labels, generator)) for images, labels in (data.train, data.test)
    )  # fmt: skip
    return NoisyDigits(train, data.validation, data.test, noisy_test)


def corrupted(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Each label is, with probability .2, one of the nine others."""
    is_wrong = torch.rand(len(labels), generator=generator) < WRONG
    others = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    return torch.where(is_wrong, others, labels)
