"""How good each of several models is, by what it says of the same inputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Part of the labels that are right, of each of M models: outputs [M, N, classes], labels [N] → [M]."""
    return (outputs.argmax(dim=-1) == labels).double().mean(dim=1)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of each of M models: outputs [M, N, ..., classes], targets [N, ...] → [M]."""
    of_all = targets.expand(len(outputs), *targets.shape)
    return functional.cross_entropy(outputs.movedim(-1, 1), of_all, reduction="none").flatten(1).mean(dim=1)


def minus_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The same with its sign turned, so that more is better."""
    return -losses(outputs, targets).double()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of one model: outputs [N, ..., classes], targets [N, ...]."""
    return functional.cross_entropy(outputs.movedim(-1, 1), targets)
