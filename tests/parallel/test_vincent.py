"""The paper's motivating example: workers in the corners of a landscape whose valleys widen away from the origin.

f(x) = −mean(sin(10·ln x)) over x in [0.25, 10]². Every minimum has f = −1; the farther out, the flatter.
"""

from __future__ import annotations

import math
from typing import Any

import peers
import pytest
import torch
from torch import Tensor

import grawa_hvd

LOWEST, HIGHEST = 0.25, 10.0
CORNERS = [(LOWEST, LOWEST), (LOWEST, HIGHEST), (HIGHEST, LOWEST), (HIGHEST, HIGHEST)]
STEPS = 500
# sin(10·ln x) = 1 at ln x = (π/2 + 2πk) / 10.
FLATTEST = math.exp((math.pi / 2 + 6 * math.pi) / 10)
SHARPER = math.exp((math.pi / 2 + 4 * math.pi) / 10)


def value(point: list[Tensor]) -> Tensor:
    return -torch.sin(10 * torch.log(torch.stack(point))).mean()


def mean_of_workers_after_training(averaging: Any) -> list[float]:
    """Each coordinate is a parameter, so that LGRAWA weighs them apart."""
    point = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in CORNERS[peers.rank()]]

    def backward() -> Tensor:
        loss = value(point)
        loss.backward()
        return loss

    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(point, lr=0.01), averaging=averaging, period=4, pull=0.5,
        scores="local" if averaging == "uniform" else backward,
    )  # fmt: skip
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward()
        optimizer.step()
        with torch.no_grad():
            for coordinate in point:
                coordinate.clamp_(LOWEST, HIGHEST)
    with optimizer.consensus():
        return [coordinate.item() for coordinate in point]


@pytest.mark.ranks(4)
@pytest.mark.filterwarnings("ignore:the initial parameters")
@pytest.mark.parametrize("policy", [grawa_hvd.GRAWA, grawa_hvd.MGRAWA, grawa_hvd.LGRAWA])
def test_gradient_norm_weights_find_the_flattest_minimum(policy: Any) -> None:
    assert pytest.approx([7.706, 7.706], abs=1e-3) == [FLATTEST, FLATTEST]
    assert mean_of_workers_after_training(policy(floor=0.0)) == pytest.approx([FLATTEST, FLATTEST], abs=0.05)


@pytest.mark.ranks(4)
@pytest.mark.filterwarnings("ignore:the initial parameters")
def test_uniform_weights_end_in_a_sharper_minimum() -> None:
    assert mean_of_workers_after_training("uniform") == pytest.approx([SHARPER, SHARPER], abs=0.05)
