"""What the workers differ by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from experiments.digits import Pair

WORKERS, CLASSES, LEAST, BRIGHTNESS = 8, 10, 16, 30.0
Deal = Callable[[Pair, torch.Generator], list[Pair]]


@dataclass(frozen=True)
class Condition:
    """One way in which workers differ.

    Attributes:
        title: for tables and plots.
        deal: the share of each worker of the training digits, by a generator.
        bad: how many workers, the first ones, have data that do harm.
        slow: how many workers, the first ones, make every second step only.
    """

    title: str
    deal: Deal
    bad: int = 0
    slow: int = 0


def evenly(train: Pair, generator: torch.Generator) -> list[Pair]:
    """Equal shares, at random."""
    order = torch.randperm(len(train[0]), generator=generator)
    return [(train[0][part], train[1][part]) for part in torch.tensor_split(order, WORKERS)]


def skewed(train: Pair, generator: torch.Generator, alpha: float) -> list[Pair]:
    """Each class is dealt out by shares from Dirichlet(alpha), drawn until each worker has `LEAST` digits."""
    images, labels = train
    while True:
        owner = torch.empty(len(labels), dtype=torch.int64)
        for label in range(CLASSES):
            members = (labels == label).nonzero().flatten()
            owner[members] = torch.multinomial(dirichlet(alpha, generator), len(members), True, generator=generator)
        if torch.bincount(owner, minlength=WORKERS).min() >= LEAST:
            return [(images[owner == worker], labels[owner == worker]) for worker in range(WORKERS)]


def dirichlet(alpha: float, generator: torch.Generator) -> Tensor:
    """Shares of the workers, [WORKERS], that sum to 1."""
    drawn = torch._standard_gamma(torch.full([WORKERS], alpha, dtype=torch.float64), generator=generator)
    return drawn / drawn.sum()


def noisy(train: Pair, generator: torch.Generator, workers: int, classes: int = CLASSES) -> list[Pair]:
    """Equal shares; the first workers have random labels."""
    shares = evenly(train, generator)
    for worker in range(workers):
        images, labels = shares[worker]
        shares[worker] = images, torch.randint(0, classes, labels.shape, generator=generator)
    return shares


def spiked(train: Pair, generator: torch.Generator) -> list[Pair]:
    """Equal shares; a digit of worker 0 is there once more, far too bright and with a wrong label.

    Its right copy keeps the network from learning it, so the spike does not fade.
    """
    shares = evenly(train, generator)
    images, labels = shares[0]
    one = int(torch.randint(0, len(labels), (), generator=generator))
    wrong = (labels[one] + torch.randint(1, CLASSES, (), generator=generator)) % CLASSES
    shares[0] = torch.cat([images, BRIGHTNESS * images[one, None]]), torch.cat([labels, wrong[None]])
    return shares


CONDITIONS = {
    "iid": Condition("nothing", evenly),
    "skew_0.1": Condition("label skew .1", partial(skewed, alpha=0.1)),
    "skew_0.5": Condition("label skew .5", partial(skewed, alpha=0.5)),
    "noisy_1": Condition("random labels, 1 of 8", partial(noisy, workers=1), bad=1),
    "noisy_3": Condition("random labels, 3 of 8", partial(noisy, workers=3), bad=3),
    "half_speed": Condition("half speed, 2 of 8", evenly, slow=2),
    "spike": Condition("gradient spikes, 1 of 8", spiked, bad=1),
}
