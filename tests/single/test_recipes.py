"""DiLoCo, SlowMo and BMUF against their papers' formulas in float64, over workers in one process."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd.averaging import policy
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS, ELEMENTS, STEPS, PERIOD, LR = 3, 5, 12, 2, 0.1
EPSILON = 2.0**-52

Array = np.ndarray


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng(100 * worker + step).normal(size=ELEMENTS)


def start() -> Array:
    return np.random.default_rng(7).normal(size=ELEMENTS)


def run(transport: LocalTransport, averaging: Any) -> list[Array]:
    """The parameters after each round; asserts that they are the centre."""
    model = nn.ParameterList([torch.from_numpy(start())])
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=LR), model.named_parameters(), process_group=transport,
        averaging=averaging, period=PERIOD, proximity=0.0,
    )  # fmt: skip
    found = []
    for step in range(STEPS):
        model[0].grad = torch.from_numpy(gradient(transport.rank, step))
        optimizer.step()
        if (step + 1) % PERIOD == 0:
            found.append(model[0].detach().numpy().copy())
            assert optimizer.center is not None and torch.equal(optimizer.center["0"], model[0])
    return found


class SlowMoOracle:
    """Wang et al., algorithm 1: u ← β·u + (x₀ − mean)/γ, x ← x₀ − α·γ·u."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum, self.u = lr, momentum, np.zeros(ELEMENTS)

    def __call__(self, center: Array, mean: Array) -> Array:
        self.u = self.momentum * self.u + (center - mean) / LR
        return center - self.lr * LR * self.u


class BmufOracle:
    """Chen & Huo: Δ ← η·Δ + ζ·(mean − c), W ← W + Δ, c = W + η·Δ, or W where the momentum is the classical one."""

    def __init__(self, lr: float, momentum: float, nesterov: bool) -> None:
        self.lr, self.momentum, self.nesterov = lr, momentum, nesterov
        self.delta, self.model = np.zeros(ELEMENTS), start()

    def __call__(self, center: Array, mean: Array) -> Array:
        self.delta = self.momentum * self.delta + self.lr * (mean - center)
        self.model = self.model + self.delta
        return self.model + self.momentum * self.delta if self.nesterov else self.model


class DiLoCoOracle:
    """Douillard et al., algorithm 1, with Nesterov's step as torch.optim.SGD defines it."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum, self.v = lr, momentum, np.zeros(ELEMENTS)

    def __call__(self, center: Array, mean: Array) -> Array:
        self.v = self.momentum * self.v + (center - mean)
        return center - self.lr * (center - mean + self.momentum * self.v)


CASES: dict[str, tuple[Any, Any]] = {
    "diloco": ("diloco", partial(DiLoCoOracle, 0.7, 0.9)),
    "diloco without momentum": (grawa_hvd.DiLoCo(0.5, 0.0), partial(DiLoCoOracle, 0.5, 0.0)),
    "slowmo": ("slowmo", partial(SlowMoOracle, 1.0, 0.5)),
    "slowmo of other numbers": (grawa_hvd.SlowMo(0.8, 0.7), partial(SlowMoOracle, 0.8, 0.7)),
    "bmuf": ("bmuf", partial(BmufOracle, 1.0, 0.5, True)),
    "bmuf of other numbers": (grawa_hvd.BMUF(0.9, 2 / 3), partial(BmufOracle, 0.9, 2 / 3, True)),
    "classical bmuf": (grawa_hvd.BMUF(1.0, 2 / 3, nesterov=False), partial(BmufOracle, 1.0, 2 / 3, False)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_follows_its_paper(case: str) -> None:
    averaging, oracle = CASES[case][0], CASES[case][1]()
    results, center = run_workers(WORKERS, partial(run, averaging=averaging)), start()
    for number in range(STEPS // PERIOD):
        workers = [center.copy() for _ in range(WORKERS)]
        for worker in range(WORKERS):
            for step in range(number * PERIOD, (number + 1) * PERIOD):
                workers[worker] = workers[worker] - LR * gradient(worker, step)
        center = oracle(center, np.mean(workers, axis=0))
        for found in results:
            # Some thirty roundings a round of numbers below 4, which momentum carries on at most 1/(1 − η) = 10 times.
            np.testing.assert_allclose(found[number], center, rtol=0, atol=1200 * (number + 1) * EPSILON)
            assert np.array_equal(found[number], results[0][number])


@pytest.mark.parametrize("recipe", [grawa_hvd.DiLoCo, grawa_hvd.SlowMo, grawa_hvd.BMUF])
def test_numbers_out_of_range_are_refused_by_name(recipe: Any) -> None:
    for lr in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"lr must be above 0, but is {lr}"):
            recipe(lr=lr)
    for momentum in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=f"momentum must be at least 0 and below 1, but is {momentum}"):
            recipe(momentum=momentum)
    assert recipe(0.3, 0.2) == recipe(lr=0.3, momentum=0.2)
    assert policy(recipe.__name__.lower()) == recipe()


def test_ranks_compare_the_numbers_of_a_recipe() -> None:
    assert grawa_hvd.DiLoCo(0.5).describe() == "DiLoCo(lr=0.5, momentum=0.9)"
    assert grawa_hvd.BMUF().describe() == "BMUF(lr=1.0, momentum=0.5, nesterov=True)"


def test_only_one_thing_moves_the_centre() -> None:
    def work(transport: LocalTransport) -> None:
        model = nn.ParameterList([torch.zeros(2)])
        grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=LR), process_group=transport, averaging="slowmo", outer_momentum=0.5
        )

    with pytest.raises(ValueError, match="only one of these can move the centre, but there are outer_momentum and "):
        run_workers(1, work)
