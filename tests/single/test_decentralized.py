"""Averaging with neighbors, over workers in one process, against its formula in float64."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd import topology
from grawa_hvd.averaging import Decentralized
from grawa_hvd.averaging.decentralized import among
from grawa_hvd.transport.local import LocalTransport, run_workers

Array = np.ndarray
WORKERS, STEPS, LR, PERIOD, PULL, PROXIMITY = 5, 12, 0.1, 2, 0.7, 0.3
SHAPES = [(3, 2), (4,), (2, 2)]
ELEMENTS = 14
EPSILON = 2.0**-52
# Some ten roundings a step of numbers below 4, none of them grown by what follows.
TOLERANCE = 40 * STEPS * EPSILON

STAR = networkx.star_graph(WORKERS - 1)
GRAPHS: dict[str, dict[str, Any]] = {
    "ring": {"graph": "ring"},
    "star": {"graph": STAR},
    "laplacian of a star": {"graph": STAR, "weights": "laplacian"},
    "one peer": {},
    "pairs": {"graph": topology.RandomPairs(3)},
}


def start(worker: int) -> Array:
    return np.random.default_rng(worker).normal(size=ELEMENTS)


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng(1000 + 100 * worker + step).normal(size=ELEMENTS)


def parts(flat: Array) -> list[torch.Tensor]:
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1]
    return [torch.from_numpy(part.reshape(shape)) for part, shape in zip(np.split(flat, ends), SHAPES, strict=True)]


def matrices(name: str) -> list[Array]:
    """The mixing matrix of each round, written down by hand."""
    eye = np.eye(WORKERS)
    if name == "ring":
        return [(eye + np.roll(eye, 1, 0) + np.roll(eye, -1, 0)) / 3] * STEPS
    edges = np.zeros((WORKERS, WORKERS))
    edges[0, 1:] = edges[1:, 0] = 1
    if name == "star":
        return [edges / WORKERS + np.diag(1 - edges.sum(1) / WORKERS)] * STEPS
    if name == "laplacian of a star":  # whose Laplacian has the eigenvalues 0, 1, …, 1, M
        return [eye - 2 / (1 + WORKERS) * (np.diag(edges.sum(1)) - edges)] * STEPS
    if name == "one peer":
        return [(eye + np.roll(eye, 2 ** (number % 3), 0)) / 2 for number in range(STEPS)]
    return [topology.RandomPairs(3).matrix(WORKERS, number).numpy() for number in range(STEPS)]


class Learner:
    """One worker's model under SGD on given gradients."""

    def __init__(self, transport: LocalTransport, **options: Any) -> None:
        self.rank = transport.rank
        self.model = nn.ParameterList(parts(start(self.rank)))
        self.optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=LR), self.model.named_parameters(), process_group=transport,
            **{"period": PERIOD, "pull": PULL, "proximity": PROXIMITY, **options},
        )  # fmt: skip

    def step(self, number: int) -> None:
        for parameter, part in zip(self.model, parts(gradient(self.rank, number)), strict=True):
            parameter.grad = part
        self.optimizer.step()

    def flat(self) -> Array:
        return torch.cat([p.detach().reshape(-1) for p in self.model]).numpy().copy()

    def center(self) -> Array:
        return torch.cat([part.reshape(-1) for part in self.optimizer.center.values()]).numpy().copy()


def expected(rounds: list[Array], steps: int = STEPS) -> tuple[list[Array], list[Array]]:
    """All workers' parameters [M, elements] after each step, and their centres."""
    x, center, found, centers = np.stack([start(worker) for worker in range(WORKERS)]), None, [], []
    for step in range(steps):
        x = x - LR * np.stack([gradient(worker, step) for worker in range(WORKERS)])
        if center is not None:
            x = x + PROXIMITY / PERIOD * (center - x)
        if (step + 1) % PERIOD == 0:
            center = rounds[step // PERIOD] @ x
            x = (1 - PULL) * x + PULL * center
        found.append(x)
        centers.append(center)
    return found, centers


@pytest.mark.filterwarnings("ignore:the initial parameters of rank")
@pytest.mark.parametrize("name", GRAPHS)
def test_workers_follow_the_formula(name: str) -> None:
    def run(transport: LocalTransport) -> tuple[list[Array], Array, Any]:
        learner, found = Learner(transport, averaging=Decentralized(**GRAPHS[name])), []
        for step in range(STEPS):
            learner.step(step)
            found.append(learner.flat())
        return found, learner.center(), learner.optimizer.last_round

    rounds = matrices(name)
    wanted, centers = expected(rounds)
    for worker, (found, center, report) in enumerate(run_workers(WORKERS, run)):
        for step in range(STEPS):
            np.testing.assert_allclose(found[step], wanted[step][worker], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(center, centers[-1][worker], rtol=0, atol=TOLERANCE)
        row = rounds[STEPS // PERIOD - 1][worker]
        np.testing.assert_allclose(report.weights.numpy(), row[:, None].repeat(len(SHAPES), 1), rtol=0, atol=4 * EPSILON)
