"""The data of the small experiments: scikit-learn's 1797 handwritten digits, and networks for them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
TEST, VALIDATION = 400, 300


class Digits(NamedTuple):
    """Images [n, 64] from 0 to 1 and labels [n]: 1097 to train on, 300 to choose by, 400 to test."""

    train: Pair
    validation: Pair
    test: Pair


@functools.lru_cache(maxsize=32)
def load(seed: int) -> Digits:
    """The digits, divided at random by the seed."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(seed))
    images, labels = torch.tensor(bunch.data / 16, dtype=torch.float32)[order], torch.tensor(bunch.target)[order]
    sizes = (len(labels) - VALIDATION - TEST, VALIDATION, TEST)
    return Digits(*zip(images.split(sizes), labels.split(sizes), strict=True))


def skewed(data: Pair, workers: int, alpha: float, seed: int) -> list[Pair]:
    """Shards whose classes have shares drawn from a Dirichlet distribution: the smaller alpha, the fewer classes.

    Each has as many images, drawn with replacement among those of their class.
    """
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # torch's gamma, of which the shares are made, takes no generator
    shares = torch.distributions.Dirichlet(torch.full((10,), alpha)).sample((workers,))
    of_class = [(labels == digit).nonzero().flatten() for digit in range(10)]
    shards = []
    for share in shares:
        digits = torch.multinomial(share, len(labels) // workers, replacement=True, generator=generator).tolist()
        places = torch.rand(len(digits), generator=generator).tolist()
        rows = torch.stack([of_class[d][int(u * len(of_class[d]))] for d, u in zip(digits, places, strict=True)])
        shards.append((images[rows], labels[rows]))
    return shards


def perceptron(seed: int, hidden: int = 32) -> nn.Sequential:
    """64 → hidden → 10, ReLU; initialised by the seed."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


@torch.no_grad()
def accuracy(model: nn.Module, data: Pair) -> float:
    """The share of images that the model classifies right."""
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


def own_accuracies(model: nn.Module, workers: dict[str, Tensor], data: Pair) -> list[float]:
    """The accuracy of each worker's own model, of parameters [M, ...] by name."""
    outputs = torch.vmap(lambda own: torch.func.functional_call(model, own, data[0]))(workers)
    return [float(share) for share in (outputs.argmax(2) == data[1]).float().mean(dim=1)]
