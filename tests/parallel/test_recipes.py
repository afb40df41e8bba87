"""DiLoCo, SlowMo and BMUF, rounds that are asked for, and what ranks look at, on real processes."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import peers
import pytest
import torch
from models import across, equal_on_all_ranks, errors, from_all, loss_of, mlp, sgd, train, wrap
from peers import hvd

import grawa_hvd

pytestmark = [pytest.mark.timeout(60, method="thread"), pytest.mark.ranks(min=2)]

LR, PERIOD, ROUNDS, ELEMENTS = 0.1, 2, 6, 5
# As single tests compare with the papers: the outer learning rate, momentum, and whether it is Nesterov's.
RECIPES = {"diloco": (0.7, 0.9, True), "slowmo": (1.0, 0.5, False), "bmuf": (1.0, 0.5, True)}


def gradient(rank: int, step: int) -> np.ndarray:
    return np.random.default_rng(100 * rank + step).normal(size=ELEMENTS)


def outer(averaging: str) -> np.ndarray:
    """The centre after the rounds, by SGD on the centre minus the mean, in float64."""
    lr, momentum, nesterov = RECIPES[averaging]
    center, v = np.zeros(ELEMENTS), np.zeros(ELEMENTS)
    for first in range(0, ROUNDS * PERIOD, PERIOD):
        moved = [sum(LR * gradient(rank, first + step) for step in range(PERIOD)) for rank in range(peers.size())]
        d = np.mean(moved, axis=0)
        v = momentum * v + d
        center = center - lr * (d + momentum * v if nesterov else v)
    return center


@pytest.mark.parametrize("averaging", RECIPES)
def test_a_recipe_moves_the_centre_as_its_formula_says(averaging: str, rank: int) -> None:
    model = torch.nn.ParameterList([torch.zeros(ELEMENTS, dtype=torch.float64)])
    optimizer = wrap(model, sgd(model, LR), averaging=averaging, period=PERIOD, proximity=0.0)
    for step in range(ROUNDS * PERIOD):
        model[0].grad = torch.from_numpy(gradient(rank, step))
        optimizer.step()
    # Some thirty roundings a round of numbers below 8, which momentum carries on at most 10 times.
    np.testing.assert_allclose(model[0].detach(), outer(averaging), rtol=0, atol=2400 * ROUNDS * 2.0**-52)
    assert equal_on_all_ranks(model)


def test_a_round_is_had_when_asked_for_and_the_next_a_period_later() -> None:
    model, rounds = mlp(), []
    optimizer = wrap(model, averaging="uniform", pull=1.0, period=4, overlap=2, on_round=rounds.append)
    train(model, optimizer, range(3))
    before = across(model)
    optimizer.round_now()
    assert equal_on_all_ranks(model)
    assert float((across(model)[0] - before.mean(dim=0)).abs().max()) <= (peers.size() + 1) * 2.0**-23
    train(model, optimizer, range(3, 9))
    assert from_all([report.step for report in rounds]) == [[3, 7]] * peers.size()


@pytest.mark.fault("astray")
def test_ranks_at_different_places_get_one_error(rank: int, size: int) -> None:
    model = mlp()
    optimizer = wrap(model, period=4)
    train(model, optimizer, range(3))

    def part() -> None:
        if rank == 0:
            train(model, optimizer, range(3, 4))
        else:
            optimizer.round_now()

    found = errors(part)
    assert found == [found[0]] * size
    assert found[0][0] == "RanksOutOfStepError" and "rank 0 came to a round when rank" in found[0][1]


def epoch(model: Any, optimizer: Any, steps: int, first: int) -> None:
    """An epoch in which a round is asked for after every third step; rounds of the period come in between."""
    for step in range(first, first + steps):
        train(model, optimizer, [step])
        if (step - first) % 3 == 2:
            optimizer.round_now()


@pytest.mark.torch_distributed
@pytest.mark.fault("data")
def test_ranks_that_have_left_by_join_follow_a_round_that_is_asked_for(rank: int, size: int) -> None:
    from torch.distributed.algorithms.join import Join  # noqa: PLC0415  (there is none in a Horovod run)

    model = mlp()
    optimizer = wrap(model, averaging="lgrawa", pull=1.0, period=2)
    for first in (0, 100):
        with Join([optimizer]):
            epoch(model, optimizer, 4 + 3 * rank, first)
        assert equal_on_all_ranks(optimizer.center.values())
        optimizer.round_now()
        assert equal_on_all_ranks(model)
    assert len(set(from_all(optimizer.rounds))) == 1


@pytest.mark.horovod
@pytest.mark.fault("data")
def test_ranks_that_have_joined_are_no_part_of_a_round_that_is_asked_for(rank: int, size: int) -> None:
    model = mlp()
    optimizer = wrap(model, averaging="lgrawa", pull=1.0, period=2)
    for first in (0, 100):
        epoch(model, optimizer, 4 + 3 * rank, first)
        hvd.join()
        optimizer.round_now()
        assert equal_on_all_ranks(model)
        assert equal_on_all_ranks(optimizer.center.values())
    assert len(set(from_all(optimizer.rounds))) == 1


@pytest.mark.fault("astray")
def test_consensus_by_the_last_weights_and_one_error_where_ranks_differ(rank: int, size: int) -> None:
    model = mlp()
    optimizer = wrap(model, averaging="mgrawa", period=3)
    train(model, optimizer, range(4))
    expected = optimizer.last_round.weights[:, 0] @ across(model)
    with optimizer.consensus(weights="last"):
        assert equal_on_all_ranks(model)
        assert float((across(model)[0] - expected).abs().max()) <= (size + 1) * 2.0**-23

    def differing() -> None:
        with optimizer.consensus(weights="equal" if rank == 0 else "last"):
            raise AssertionError("the block is not entered")

    found = errors(differing)
    assert found == [found[0]] * size
    assert found[0][0] == "ValueError" and "is 'equal' on rank 0 and 'last' on rank" in found[0][1]


@pytest.mark.parametrize("shared", [True, pytest.param(False, marks=pytest.mark.fault("differ"))])
def test_held_out_scores_want_one_batch_on_all_ranks(shared: bool, rank: int, size: int) -> None:
    model = mlp()

    def closure() -> torch.Tensor:
        loss = loss_of(model, 1, rank=0 if shared else rank)
        loss.backward()
        return loss

    optimizer = wrap(model, averaging="mgrawa", scores=grawa_hvd.HeldOutScores(closure))
    found = errors(functools.partial(train, model, optimizer, range(4)))
    if shared:
        assert found == [("", "")] * size
        assert equal_on_all_ranks([optimizer.last_round.weights])
    else:
        assert found == [found[0]] * size
        assert found[0][0] == "ValueError" and "needs one batch that all workers share" in found[0][1]
