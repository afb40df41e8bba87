"""Scikit-learn's handwritten digits, and the models that learn them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
TEST, HELD_OUT = 359, 128


def mlp() -> nn.Module:
    """64-64-64-10 with ReLU between."""
    first, second = [nn.Linear(64, 64), nn.ReLU()], [nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Linear(64, 10))


def logistic() -> nn.Module:
    """Logistic regression: one layer, convex."""
    return nn.Sequential(nn.Linear(64, 10))


def convolutions() -> nn.Module:
    """The network of examples/digits.py: two convolutions and two linear layers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Data(NamedTuple):
    """Three parts of the data, that share none: inputs [N, ...] and targets [N, ...]."""

    train: Pair
    held_out: Pair
    test: Pair


def load(split: int) -> Data:
    """Images [N, 64] from 0 to 1 and labels [N], shuffled by the number of the split."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(split))
    test, held_out, train = torch.tensor_split(order, [TEST, TEST + HELD_OUT])
    return Data(*((images[part], labels[part]) for part in (train, held_out, test)))
