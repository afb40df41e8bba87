"""Averaging with neighbors among real ranks, against its formula in float64."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import peers
import pytest
import torch
from models import across, errors, mlp, set_gradients, sgd, wrap
from peers import hvd
from torch import nn
from torch.distributed.algorithms.join import Join

from grawa_hvd import topology
from grawa_hvd.averaging import Decentralized

pytestmark = [
    pytest.mark.ranks(4),
    pytest.mark.filterwarnings("ignore:the initial parameters of rank"),
]

Array = np.ndarray
WORKERS, STEPS, LR, PERIOD, PULL, PROXIMITY = 4, 40, 0.1, 2, 0.7, 0.3
SHAPES, ELEMENTS = [(3, 2), (4,), (2, 2)], 14
# Six float32 roundings a step of numbers below 4, all in one direction: 5.7e-5.
TOLERANCE = 6 * STEPS * 4 * 2.0**-24

EYE = np.eye(WORKERS)
RING = (EYE + np.roll(EYE, 1, 0) + np.roll(EYE, -1, 0)) / 3
STAR = EYE / 4 + np.array([[0, 1, 1, 1], [1, 2, 0, 0], [1, 0, 2, 0], [1, 0, 0, 2]]) / 4
ONE_PEER = [(EYE + np.roll(EYE, distance, 0)) / 2 for distance in (1, 2)]
PAIRS = topology.RandomPairs(1)
CASES: dict[str, tuple[dict[str, Any], list[Array]]] = {
    "ring": ({"averaging": Decentralized("ring")}, [RING]),
    "buckets": ({"averaging": Decentralized("ring"), "groups": 3}, [RING]),
    "star": ({"averaging": Decentralized(networkx.star_graph(3))}, [STAR]),
    "one peer": ({"averaging": Decentralized()}, ONE_PEER),
    "pairs": ({"averaging": Decentralized(PAIRS)}, [PAIRS.matrix(WORKERS, n).numpy() for n in range(STEPS // PERIOD)]),
}


def start(worker: int) -> Array:
    return np.random.default_rng(worker).normal(size=ELEMENTS)


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng(1000 + 100 * worker + step).normal(size=ELEMENTS)


def model_of(flat: Array, dtype: torch.dtype = torch.float32) -> nn.ParameterList:
    parts = np.split(flat, np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1])
    tensors = [torch.from_numpy(part.reshape(shape)).to(dtype) for part, shape in zip(parts, SHAPES, strict=True)]
    return nn.ParameterList(tensors)


def step_of(model: nn.ParameterList, optimizer: Any, step: int) -> None:
    given = model_of(gradient(peers.rank(), step), model[0].dtype)
    for parameter, part in zip(model, given, strict=True):
        parameter.grad = part.detach()
    optimizer.step()


def learner(**options: Any) -> tuple[nn.ParameterList, Any]:
    model = model_of(start(peers.rank()))
    return model, wrap(model, sgd(model, LR), **{"pull": PULL, "proximity": PROXIMITY, **options})


def without(matrix: Array, absent: int) -> Array:
    """What the others would have of an absent worker counts for themselves."""
    result = matrix.copy()
    result[:, absent] = result[absent, :] = 0
    return result + np.diag(1 - result.sum(axis=1))


@pytest.mark.parametrize("name", CASES)
def test_ranks_follow_the_formula(name: str) -> None:
    options, matrices = CASES[name]
    model, optimizer = learner(**options)
    x, center, errors_ = np.stack([start(worker) for worker in range(WORKERS)]), None, []
    for step in range(STEPS):
        x = x - LR * np.stack([gradient(worker, step) for worker in range(WORKERS)])
        if center is not None:
            x = x + PROXIMITY / PERIOD * (center - x)
        if step % PERIOD:
            center = matrices[step // PERIOD % len(matrices)] @ x
            x = (1 - PULL) * x + PULL * center
        step_of(model, optimizer, step)
        errors_.append(float(np.abs(across(model).numpy() - x).max()))
    assert max(errors_) <= TOLERANCE
    assert np.abs(across(optimizer.center.values()).numpy() - center).max() <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_of_every_type_travel_as_they_are(dtype: torch.dtype) -> None:
    """One rounding to the type of the model; the mix is made in float32 at least."""
    model = model_of(start(peers.rank()), dtype)
    expected = RING @ across(model).numpy()
    optimizer = wrap(model, sgd(model, 0.0), period=1, pull=1.0, averaging=Decentralized("ring"))
    set_gradients(model, 0.0)
    optimizer.step()
    found = across(model).numpy()
    # Three products and sums in float32 or float64, and one rounding.
    unit = torch.finfo(dtype).eps + (0.0 if dtype == torch.float64 else 6 * 2.0**-24)
    assert np.abs(found - expected).max() <= 4 * unit * np.abs(expected).max()
    rows = optimizer.last_round.bytes - 2 * ELEMENTS * dtype.itemsize
    assert 0 < rows <= 2 * WORKERS * 200


@pytest.mark.fault("data")
def test_a_rank_that_joins_early_is_left_out_and_comes_back() -> None:
    """Its neighbors keep its weight for themselves, and in the next epoch all mix again."""
    model, optimizer = learner(averaging=Decentralized("ring"), proximity=0.0)
    x, step, found, expected, weights = np.stack([start(worker) for worker in range(WORKERS)]), 0, [], [], []
    for _ in range(2):
        mine = 4 if peers.rank() == 2 else 8
        if peers.TRANSPORT == "torch":
            with Join([optimizer]):
                for own in range(mine):
                    step_of(model, optimizer, step + own)
        else:
            for own in range(mine):
                step_of(model, optimizer, step + own)
            hvd.join()
        weights.append(optimizer.last_round.weights[2].max().item())
        for own in range(8):
            moved = x - LR * np.stack([gradient(worker, step + own) for worker in range(WORKERS)])
            there = np.ones((WORKERS, 1), dtype=bool)
            there[2] = own < 4
            x = np.where(there, moved, x)
            if own % PERIOD:
                x = (1 - PULL) * x + PULL * ((RING if own < 4 else without(RING, 2)) @ x)
        step += 8
        found.append(across(model).numpy())
        expected.append(x)
    assert max(float(np.abs(f - e).max()) for f, e in zip(found, expected, strict=True)) <= TOLERANCE
    if peers.rank() != 2:
        assert weights == [0.0, 0.0]


@pytest.mark.parametrize("options", [{}, {"fragments": 2}, {"overlap": 1}], ids=["whole", "fragments", "overlap"])
@pytest.mark.fault("diverged")
def test_a_rank_that_diverged_becomes_the_mean_of_its_neighbors(options: dict[str, Any]) -> None:
    model, optimizer = learner(averaging=Decentralized("ring"), pull=1.0, **options)
    for step in range(8):
        if step == 2 and peers.rank() == 2:
            model[0].data[0, 0] = torch.nan
        step_of(model, optimizer, step)
        if step == 3 and not options:
            healed, centers = across(model), across(optimizer.center.values())
    assert bool(across(model).isfinite().all())
    assert bool(across(optimizer.center.values()).isfinite().all())
    if not options:
        assert torch.equal(healed, centers)
        assert bool(healed.isfinite().all())


@pytest.mark.fault("differ")
def test_a_rank_with_another_graph_is_told_so_on_all() -> None:
    graph = networkx.path_graph(4) if peers.rank() else networkx.cycle_graph(4)
    model = mlp()
    optimizer = wrap(model, averaging=Decentralized(graph))
    set_gradients(model.parameters(), 1.0)
    found = errors(optimizer.step)
    assert {kind for kind, _ in found} == {"ValueError"}
    assert all("averaging=Decentralized(" in text and "on rank 0" in text for _, text in found)
