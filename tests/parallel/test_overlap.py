"""Rounds behind training: a round starts after step t, and its pull comes after step t + overlap."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import peers
import pytest
import torch
from learner import compare, too_large
from models import across, copies, equal_on_all_ranks, errors, from_all, loss_of, mlp, same, sgd, train, wrap
from peers import hvd
from simulation import Scheme
from torch import Tensor, nn
from torch.amp import GradScaler

pytestmark = pytest.mark.ranks(2)

SCHEMES = {
    "1": Scheme(overlap=1, proximity=0.3),
    "3-of-5": Scheme(period=5, overlap=3, proximity=0.3, pull=0.3),
    "all-but-one-step": Scheme(period=4, overlap=3, proximity=0.3, pull=1.0),
    "outer": Scheme("mgrawa", overlap=3, proximity=0.3, outer_momentum=0.7),
    "fresh-outer": Scheme("grawa", "fresh", overlap=2, proximity=0.3, outer_momentum=0.5),
    "uniform-momentum": Scheme("uniform", overlap=2, proximity=0.3, momentum=0.9, lr=0.02),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_overlapped_rounds_follow_the_formulas(scheme: Scheme) -> None:
    assert not too_large(compare(scheme, steps=20))


def in_flight(**options: Any) -> tuple[nn.Module, Any, list[Tensor], list[Tensor]]:
    """A model whose second round, started after step 8, is under way after step 9.

    Returns:
        The model, its optimizer, and the parameters after steps 8 and 9.
    """
    model = mlp()
    optimizer = wrap(model, sgd(model, 0.05, momentum=0.9), **{"period": 4, "overlap": 2, "proximity": 0.5, **options})
    train(model, optimizer, range(8))
    started = copies(model)
    train(model, optimizer, range(8, 9))
    return model, optimizer, started, copies(model)


def pulled(now: list[Tensor], started: list[Tensor], center: list[Tensor], pull: float = 0.5) -> list[Tensor]:
    """x + λ·(c − x_t)."""
    return [x + pull * (c - x_t) for x, x_t, c in zip(now, started, center, strict=True)]


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    # Three roundings of numbers below 1.
    return all(torch.allclose(a, b, rtol=0, atol=3 * 2.0**-24) for a, b in zip(found, expected, strict=True))


def test_a_round_counts_once_its_pull_is_done() -> None:
    model, optimizer, _, _ = in_flight()
    seen = [(optimizer.rounds, optimizer.last_round.step)]
    train(model, optimizer, range(9, 10))
    seen.append((optimizer.rounds, optimizer.last_round.step))
    assert seen == [(1, 4), (2, 8)]


@pytest.mark.parametrize("how", ["state_dict", "consensus"])
def test_what_looks_at_the_parameters_finishes_the_round_first(how: str) -> None:
    model, optimizer, started, now = in_flight()
    old = [tensor.clone() for tensor in optimizer.center.values()]
    if how == "state_dict":
        optimizer.state_dict()
    else:
        with optimizer.consensus():
            inside = equal_on_all_ranks(model)
        assert inside
    center = list(optimizer.center.values())
    assert optimizer.rounds == 2
    assert not same(old, center)
    assert equal_on_all_ranks(center)
    assert close(copies(model), pulled(now, started, center))
    train(model, optimizer, range(9, 13))
    assert optimizer.last_round.step == 8  # the third has started at 12
    assert equal_on_all_ranks(optimizer.center.values())


def test_the_consensus_in_flight_is_the_mean_of_the_pulled_models() -> None:
    model, optimizer, _, _ = in_flight()
    with optimizer.consensus():
        found = across(model)[0]
    assert torch.allclose(found, across(model).mean(dim=0), rtol=0, atol=3 * 2.0**-24)


@pytest.mark.parametrize("options", [{}, {"outer_momentum": 0.6}, {"fragments": 2}, {"averaging": "uniform"}], ids=str)
def test_a_checkpoint_in_flight_continues_bitwise(options: dict[str, Any]) -> None:
    model, optimizer, _, _ = in_flight(**options)
    state = copy.deepcopy(optimizer.state_dict())
    parameters = copies(model)
    train(model, optimizer, range(9, 18))
    results = []
    for _ in range(2):  # the second time into an optimizer that has a round of its own under way
        again, resumed, _, _ = in_flight(**options) if results else (mlp(7), None, None, None)
        resumed = resumed or wrap(
            again, sgd(again, 0.05, momentum=0.9), **{"period": 4, "overlap": 2, "proximity": 0.5, **options}
        )
        for parameter, saved in zip(again.parameters(), parameters, strict=True):
            parameter.data.copy_(saved)
        resumed.load_state_dict(copy.deepcopy(state))
        train(again, resumed, range(9, 18))
        results.append(same(copies(model), copies(again)) and resumed.rounds == optimizer.rounds)
    assert results == [True, True]


def test_all_ranks_can_go_back_to_a_checkpoint_while_a_round_is_under_way() -> None:
    model, optimizer, _, _ = in_flight()
    state, parameters = copy.deepcopy(optimizer.state_dict()), copies(model)
    train(model, optimizer, range(9, 13))
    went_on = copies(model)
    for parameter, saved in zip(model.parameters(), parameters, strict=True):
        parameter.data.copy_(saved)
    optimizer.load_state_dict(state)
    train(model, optimizer, range(9, 13))
    assert same(copies(model), went_on)


@pytest.mark.fault("astray")
def test_rank_0_that_goes_back_to_a_checkpoint_alone_while_a_round_is_under_way_is_an_error_on_every_rank(
    rank: int,
) -> None:
    model, optimizer, _, _ = in_flight()
    state, parameters = copy.deepcopy(optimizer.state_dict()), copies(model)
    train(model, optimizer, range(9, 13))
    if rank == 0:
        for parameter, saved in zip(model.parameters(), parameters, strict=True):
            parameter.data.copy_(saved)
        optimizer.load_state_dict(state)
    found = errors(lambda: train(model, optimizer, range(13, 23)))
    assert [kind for kind, _ in found] == ["RanksOutOfStepError"] * peers.size()
    assert all("rank 0 loaded a checkpoint, or called recenter(), while" in text for _, text in found)


def test_a_scheduler_drives_the_overlapped_optimizer_as_it_does_a_plain_one() -> None:
    results = []
    for scheduled in (True, False):
        model = mlp()
        optimizer = wrap(model, period=4, overlap=3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5) if scheduled else None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(12):
                train(model, optimizer, [step])
                if scheduler is not None:
                    scheduler.step()
                else:
                    optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** ((step + 1) // 3)
        results.append(copies(model))
    assert same(*results)


@pytest.mark.fault("overflow")
def test_an_overflow_in_flight_skips_that_update_and_the_pull_still_comes(rank: int) -> None:
    model, optimizer, started, now = in_flight(proximity=0.0)
    scaler = GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    scaler.scale(loss_of(model, 9)).backward()
    if rank == 0:
        model[0].weight.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    center, found = list(optimizer.center.values()), copies(model)
    expected = close(found, pulled(now, started, center))
    train(model, optimizer, range(10, 13))
    assert expected == (rank == 0)
    assert from_all(optimizer.rounds) == [2] * peers.size()
    assert from_all(scaler.get_scale()) == [512.0, 1024.0]
    assert equal_on_all_ranks(center)


@pytest.mark.horovod
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", [5, 9], ids=["first-round-under-way", "second"])
@pytest.mark.fault("data")
def test_a_rank_may_join_while_a_sum_is_under_way(dtype: torch.dtype, first: int, rank: int) -> None:
    model = nn.ParameterList([torch.full((300,), 2.0, dtype=dtype), torch.full((2, 2), -2.0, dtype=dtype)])
    optimizer = wrap(model, sgd(model, 0.0), period=4, overlap=3, pull=1.0)
    for _ in range(2):
        for _ in range(first + 4 * rank):
            for parameter in model:
                parameter.grad = torch.full_like(parameter, 1.0 + rank)
            optimizer.step()
        hvd.join()
        with optimizer.consensus():
            assert equal_on_all_ranks(model)
    # Every worker was at 2 and −2 all the time: whoever is counted, so is the centre.
    assert all(bool((center.abs() == 2).all()) for center in optimizer.center.values())
    assert all(bool((parameter.abs() == 2).all()) for parameter in model)


@pytest.mark.fault("raises")
def test_a_closure_that_raises_in_flight_leaves_the_round_to_the_next_step(rank: int) -> None:
    model, optimizer, _, _ = in_flight()
    other, plain, _, _ = in_flight()

    def closure() -> Tensor:
        if rank == 0:
            raise KeyError("no batch left")
        optimizer.zero_grad()
        loss = loss_of(model, 9)
        loss.backward()
        return loss

    if rank == 0:
        with pytest.raises(KeyError):
            optimizer.step(closure)
        train(model, optimizer, range(9, 10))
    else:
        optimizer.step(closure)
    train(model, optimizer, range(10, 15))
    train(other, plain, range(9, 15))
    assert same(copies(model), copies(other))
    assert optimizer.rounds == plain.rounds == 3


def test_parameters_added_in_flight_are_averaged_from_the_next_round_on() -> None:
    model = mlp()
    optimizer = wrap(model, sgd(model[0], 0.05), period=4, overlap=2, averaging="grawa")
    train(model, optimizer, range(5))
    optimizer.add_param_group({"params": model[2].parameters()})
    names = []
    for step in range(5, 11):
        train(model, optimizer, [step])
        names.append(0 if optimizer.center is None else len(optimizer.center))
    assert names == [2, 2, 2, 2, 4, 4][: len(names)] or names == [2, 2, 2, 2, 2, 4]
    assert equal_on_all_ranks(optimizer.center.values())
    assert optimizer.last_round.weights.shape == (peers.size(), 4)


@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.fault("diverged")
def test_a_rank_that_diverges_around_a_flight_comes_back(when: str, averaging: str, rank: int) -> None:
    """Poisoned at step 8 it is out of the round that starts there; at step 9, of the one that starts at 12."""
    model = mlp()
    optimizer = wrap(model, sgd(model, 0.05, momentum=0.9), period=4, overlap=2, averaging=averaging)
    train(model, optimizer, range(7 if when == "before" else 8))
    if rank == 0:
        model[0].weight.data[0, 0] = torch.nan
    weights = {}
    for step in range(7 if when == "before" else 8, 22):
        train(model, optimizer, [step])
        weights[optimizer.last_round.step] = optimizer.last_round.weights[0].clone()
    out = 8 if when == "before" else 12
    assert bool(across(model).isfinite().all())
    assert [step for step, row in sorted(weights.items()) if not row.any()] == [out]
    assert equal_on_all_ranks(optimizer.center.values())


@pytest.mark.ranks(4)
def test_overlap_in_a_part_of_the_ranks_leaves_the_others_alone(rank: int) -> None:
    model, alone = mlp(), mlp()
    with peers.members([1, 3]) as odd:
        optimizer, plain = wrap(model, **odd, period=4, overlap=3), sgd(alone)
        train(model, optimizer, range(12))
        train(alone, plain, range(12))
        centers = from_all([tensor.clone() for tensor in (optimizer.center or {}).values()])
    assert [len(center) for center in centers] == [0, 4, 0, 4]
    assert same(centers[1], centers[3])
    assert same(copies(model), copies(alone)) == (rank in (0, 2))


BAD = {
    "as-long-as-the-period": 4,
    "negative": -1,
    "bool": True,
    "float": 1.0,
}


@pytest.mark.parametrize("overlap", BAD.values(), ids=BAD)
def test_an_overlap_out_of_range_is_refused_on_every_rank(overlap: Any) -> None:
    found = errors(lambda: wrap(mlp(), period=4, overlap=overlap))
    assert [kind for kind, _ in found] == ["ValueError"] * peers.size()
    assert all(f"overlap must be an integer from 0 to 3, but is {overlap!r}" in text for _, text in found)
