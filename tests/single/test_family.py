"""Rounds made of other pieces, over workers in one process, against the formulas of their papers in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.averaging import Averaging, Column, Observed
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS, ELEMENTS, ROUNDS = 3, 5, 6
LR = 0.1
EPSILON = 2.0**-52

Array = np.ndarray


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng(100 * worker + step).normal(size=ELEMENTS)


def start() -> Array:
    return np.random.default_rng(7).normal(size=ELEMENTS)


def run(transport: LocalTransport, steps: int = ROUNDS, **options: Any) -> tuple[list[Array], list[Array]]:
    """This worker's parameters, and its centre, after each step of SGD on given gradients."""
    model = nn.ParameterList([torch.from_numpy(start())])
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=LR), model.named_parameters(), process_group=transport,
        **{"period": 1, "proximity": 0.0, **options},
    )  # fmt: skip
    found, centers = [], []
    for step in range(steps):
        model[0].grad = torch.from_numpy(gradient(transport.rank, step))
        optimizer.step()
        found.append(model[0].detach().numpy().copy())
        center = optimizer.center
        centers.append(center["0"].numpy().copy() if center else np.full(ELEMENTS, np.nan))
    return found, centers


def check(expected: Callable[[list[Array], Array | None], tuple[list[Array], Array]], first: Array | None = None,
          **options: Any) -> None:  # fmt: skip
    """Compare with a round of all workers: (parameters, old centre) → (parameters, new centre)."""
    results = run_workers(WORKERS, partial(run, **options))
    workers, center = [start() for _ in range(WORKERS)], first
    for step in range(ROUNDS):
        workers = [x - LR * gradient(worker, step) for worker, x in enumerate(workers)]
        workers, center = expected(workers, center)
        for x, (found, centers) in zip(workers, results, strict=True):
            # Some ten roundings a step of numbers below 4, none of them grown by what follows.
            np.testing.assert_allclose(found[step], x, rtol=0, atol=40 * (step + 1) * EPSILON)
            np.testing.assert_allclose(centers[step], center, rtol=0, atol=40 * (step + 1) * EPSILON)
            assert np.array_equal(centers[step], results[0][1][step])


def mean(workers: list[Array]) -> Array:
    return np.mean(workers, axis=0)


def test_diloco_is_made_of_the_mean_and_sgd_with_nesterov() -> None:
    lr, momentum = 0.7, 0.9
    memory: list[Array] = []

    def expected(workers: list[Array], center: Array | None) -> tuple[list[Array], Array]:
        assert center is not None
        pseudo = center - mean(workers)
        memory.append(pseudo if not memory else momentum * memory[-1] + pseudo)
        moved = center - lr * (pseudo + momentum * memory[-1])
        return [moved] * len(workers), moved

    outer = partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=True)
    check(expected, start(), averaging="uniform", pull=1.0, outer_optimizer=outer)


@pytest.mark.parametrize("pull", [0.3, 1.0])
def test_outer_momentum_is_sgd_on_the_centre_from_the_second_round_on(pull: float) -> None:
    memory: list[Array] = []

    def expected(workers: list[Array], center: Array | None) -> tuple[list[Array], Array]:
        if center is None:
            moved = mean(workers)
        else:
            step = mean(workers) - center
            memory.append(step if not memory else 0.6 * memory[-1] + step)
            moved = center + memory[-1]
        return [x + pull * (moved - x) for x in workers], moved

    check(expected, averaging="uniform", pull=pull, outer_momentum=0.6)


@dataclass(frozen=True)
class Farthest(Averaging):
    """All weight to the worker that is farthest from the last centre, layer by layer."""

    needs: ClassVar[frozenset[Column]] = frozenset({Column.DISPLACEMENTS})

    def scores(self, observed: Observed) -> Tensor:
        return observed.displacements

    def weights(self, scores: Tensor) -> Tensor:
        return (scores == scores.amax(dim=0)).double() / (scores == scores.amax(dim=0)).sum(dim=0)


def test_policies_see_distances_from_the_last_centre() -> None:
    def expected(workers: list[Array], center: Array | None) -> tuple[list[Array], Array]:
        if center is None:
            return [0.5 * (x + mean(workers)) for x in workers], mean(workers)
        moved = max(workers, key=lambda x: float(np.linalg.norm(x - center)))
        return [0.5 * (x + moved) for x in workers], moved

    check(expected, averaging=Farthest())


@dataclass(frozen=True)
class Alternating(Averaging):
    """Worker r has all the weight in rounds r, r + M, …: what a policy remembers is how many rounds there were."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def init(self, workers: int, layers: int) -> Any:
        return {"rounds": torch.zeros((), dtype=torch.int64)}

    def __call__(self, observed: Observed, state: Any) -> tuple[Any, Any]:
        weights = torch.zeros_like(observed.norms)
        weights[int(state["rounds"]) % len(weights)] = 1.0
        return grawa_hvd.averaging.Mixing(weights, weights), {"rounds": state["rounds"] + 1}


def test_a_policy_may_remember_what_it_needs_from_round_to_round() -> None:
    turns = iter(range(ROUNDS))

    def expected(workers: list[Array], center: Array | None) -> tuple[list[Array], Array]:
        moved = workers[next(turns) % WORKERS]
        return [0.5 * (x + moved) for x in workers], moved

    check(expected, averaging=Alternating())


@pytest.mark.parametrize("warmup", [1, 4])
def test_workers_are_their_mean_after_each_step_of_the_warm_up(warmup: int) -> None:
    results = run_workers(WORKERS, partial(run, steps=8, warmup_steps=warmup, period=2, averaging="uniform", pull=0.5))
    workers = [start() for _ in range(WORKERS)]
    for step in range(8):
        workers = [x - LR * gradient(worker, step) for worker, x in enumerate(workers)]
        if step < warmup:
            workers = [mean(workers)] * WORKERS
        elif (step + 1 - warmup) % 2 == 0:
            workers = [0.5 * (x + mean(workers)) for x in workers]
        for x, (found, _) in zip(workers, results, strict=True):
            np.testing.assert_allclose(found[step], x, rtol=0, atol=40 * (step + 1) * EPSILON)


def test_a_period_that_is_a_function_makes_cycles_of_the_lengths_that_it_says() -> None:
    def work(transport: LocalTransport) -> list[int]:
        model, rounds = nn.ParameterList([torch.zeros(2)]), []
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=LR), model.named_parameters(), process_group=transport,
            period=lambda progress: 1 + progress.rounds, on_round=lambda report: rounds.append(report.step),
        )  # fmt: skip
        for _ in range(12):
            model[0].grad = torch.ones(2)
            optimizer.step()
        return rounds

    # Cycles of 1, 2, 3, … steps: when a cycle begins, the round that ends the one before has not been counted yet.
    assert run_workers(2, work) == [[1, 2, 4, 7, 11]] * 2


def test_reports_tell_the_step_at_which_a_round_began_in_the_warm_up_too() -> None:
    def work(transport: LocalTransport) -> list[int]:
        model, rounds = nn.ParameterList([torch.zeros(2)]), []
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=LR), model.named_parameters(), process_group=transport,
            period=4, overlap=3, warmup_steps=2, on_round=lambda report: rounds.append(report.step),
        )  # fmt: skip
        for _ in range(13):
            model[0].grad = torch.ones(2)
            optimizer.step()
        return rounds

    assert run_workers(2, work) == [[1, 2, 6, 10]] * 2


@pytest.mark.fault("diverged")
def test_a_worker_that_diverges_in_the_warm_up_becomes_the_mean_and_not_an_old_centre() -> None:
    def work(transport: LocalTransport) -> list[float]:
        model, found = nn.ParameterList([torch.zeros(2)]), []
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), process_group=transport,
            averaging="diloco", warmup_steps=4, period=2, proximity=0.0,
        )  # fmt: skip
        for step in range(3):
            model[0].grad = torch.full((2,), torch.nan if (transport.rank, step) == (1, 2) else -1.0)
            optimizer.step()
            found.append(model[0][0].item())
        return found

    assert run_workers(3, work) == [[1.0, 2.0, 3.0]] * 3
