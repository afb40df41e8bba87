"""Ranks that part company: one overflows, runs out of data, diverges, raises, or was set up differently."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from models import (
    across,
    copies,
    equal_on_all_ranks,
    errors,
    from_all,
    loss_of,
    mlp,
    same,
    set_gradients,
    sgd,
    train,
    wrap,
)
from peers import hvd
from torch import Tensor, nn
from torch.amp import GradScaler

import grawa_hvd

pytestmark = [pytest.mark.timeout(60, method="thread"), pytest.mark.ranks(min=2)]

OVERFLOWS_AT = 2


def scaled_step(model: nn.Module, optimizer: Any, scaler: GradScaler, step: int, idiom: str) -> list[Tensor]:
    """A training step with a scaled loss; rank 0 overflows once. Returns the unscaled gradients."""
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward(retain_graph=True)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    if step == OVERFLOWS_AT and peers.rank() == 0:
        model[0].weight.grad[0, 0] = torch.inf
    if idiom == "plain":
        scaler.step(optimizer)
    else:
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
    scaler.update()
    return gradients


WRAPPED: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: sgd(model, 0.01, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "fused Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
}


@pytest.mark.parametrize("idiom", ["plain", "synchronize, unscale, clip, skip_synchronize"])
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.fault("overflow")
def test_an_overflow_on_one_rank_skips_its_update_and_nothing_else(wrapped: str, idiom: str, rank: int) -> None:
    model = mlp()
    optimizer = wrap(model, WRAPPED[wrapped](model), period=5, proximity=0.0)
    scaler = GradScaler("cpu", init_scale=1024.0)
    moved, norms, scales = [], [], []
    estimate, count = torch.zeros(4, dtype=torch.float64), 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(10):
            before = copies(model)
            gradients = scaled_step(model, optimizer, scaler, step, idiom)
            if step < 5:
                moved.append(not same(before, model.parameters()))
                if moved[-1] or step == 4:
                    norms = torch.stack([gradient.double().norm() for gradient in gradients])
                    estimate, count = 0.85 * estimate + 0.15 * norms, 0.85 * count + 0.15
            if step == 4:
                scores = optimizer.last_round.scores
                expected = across([estimate / count])
            scales.append(scaler.get_scale())
    places = from_all((optimizer.rounds, optimizer.last_round.step))
    assert places == [(2, 10)] * peers.size()
    skipped = [step for step, did in enumerate(moved) if not did]
    assert skipped == ([OVERFLOWS_AT] if rank == 0 else [])
    assert scales[-1] == (512.0 if rank == 0 else 1024.0)
    assert torch.allclose(scores, expected, rtol=1e-4)
    assert not [name for name in ("grad_scale", "found_inf") if getattr(optimizer, name, None) is not None]


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_under_a_grad_scaler_a_step_is_that_of_the_plain_optimizer(wrapped: str) -> None:
    results = []
    for average in (False, True):
        model = mlp()
        optimizer = WRAPPED[wrapped](model)
        if average:
            optimizer = wrap(model, optimizer, period=100)
        scaler = GradScaler("cpu", init_scale=1000.0)
        for step in range(4):
            scaled_step(model, optimizer, scaler, step, "plain")
        results.append(copies(model))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.fault("gradients")
def test_a_grad_scaler_on_a_rank_without_any_gradient_still_counts_the_step(wrapped: str, rank: int) -> None:
    model = mlp()
    optimizer = wrap(model, WRAPPED[wrapped](model), period=100)

    def steps() -> None:
        for step in range(2):
            scaler = GradScaler("cpu", init_scale=1024.0)
            optimizer.zero_grad()
            loss = scaler.scale(loss_of(model, step))
            if rank > 0:
                loss.backward()
            scaler.step(optimizer)

    assert errors(steps) == [("", "")] * peers.size()
    assert from_all(optimizer.state_dict()["grawa"]["steps"]) == [2] * peers.size()


@pytest.mark.horovod
@pytest.mark.fault("data")
def test_ranks_with_fewer_batches_join_and_nobody_shrinks(rank: int, size: int) -> None:
    model = nn.ParameterList([torch.full((3,), 2.0), torch.full((2, 2), -2.0)])
    optimizer = wrap(model, sgd(model, 0.0), pull=1.0)
    expected, reports, kept = copies(model), [], []
    for epoch in range(2):
        for step in range(4 + 2 * rank):
            set_gradients(model, 1.0 + rank)
            optimizer.step()
            if epoch == 0 and step % 2:
                reports.append(optimizer.last_round.weights.clone())
        hvd.join()
        kept.append(max(float((p - e).detach().abs().max() / 2) for p, e in zip(model, expected, strict=True)))
    # A weighted sum of equal numbers rounds each product, each sum and the division by the sum of the weights.
    tolerance = 2 * (2 + size) * (size + 2) * torch.finfo(torch.float32).eps  # over two epochs of 2 + size rounds
    assert max(kept) <= tolerance
    for number, weights in enumerate(reports):
        present = [4 + 2 * r >= 2 * number + 2 for r in range(size)]
        assert torch.allclose(weights.sum(dim=0), torch.ones(2, dtype=torch.float64))
        assert [bool(row.sum() > 0) for row in weights] == present
    assert len(reports) == 2 + rank
    assert all(float((center.abs() / 2 - 1).abs().max()) <= tolerance for center in optimizer.center.values())


@pytest.mark.horovod
@pytest.mark.parametrize("averaging", ["uniform", "grawa", "lgrawa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.fault("data")
def test_averaging_works_again_after_a_join(averaging: str, dtype: torch.dtype, rank: int, size: int) -> None:
    model = nn.ParameterList([torch.ones(3, dtype=dtype), torch.ones(2, 2, dtype=dtype)])
    optimizer = wrap(model, pull=1.0, averaging=averaging)
    for epoch in range(3):
        for _ in range(2 + (4 * rank if epoch < 2 else 4)):
            set_gradients(model, 0.1 * (rank + 1))
            optimizer.step()
        hvd.join()
    weights = optimizer.last_round.weights
    assert equal_on_all_ranks(model)
    assert bool((weights > 0).all())
    assert torch.allclose(weights.sum(dim=0), torch.ones(2, dtype=torch.float64))
    assert from_all(optimizer.rounds) == [1 + 2 * (size - 1) + 1 + 2 * (size - 1) + 3] * size


@pytest.mark.horovod
@pytest.mark.fault("data")
def test_ranks_that_join_between_rounds_meet_again(rank: int, size: int) -> None:
    """Their steps since the last round differ then: a round waits for the last of them."""
    model = mlp()
    optimizer = wrap(model, period=3, pull=1.0)
    for epoch in range(3):
        for step in range(4 + rank):
            train(model, optimizer, [10 * epoch + step])
        hvd.join()
    with optimizer.consensus():
        assert equal_on_all_ranks(model)
    assert min(from_all(optimizer.rounds)) >= 3
    for step in range(9):
        train(model, optimizer, [step])
    hvd.join()
    assert bool((optimizer.last_round.weights.sum(dim=0) - 1).abs().max() < 1e-6)


@pytest.mark.horovod
@pytest.mark.fault("data")
def test_a_rank_whose_first_epoch_is_empty_takes_part_in_the_second(rank: int) -> None:
    """It meets the others at their next round, and is behind them in this epoch: every uneven epoch ends in a join."""
    model = mlp()
    optimizer = wrap(model, pull=1.0)
    train(model, optimizer, range(4 if rank else 0))
    hvd.join()
    train(model, optimizer, range(4, 8))
    weights = optimizer.last_round.weights
    hvd.join()
    with optimizer.consensus():
        assert equal_on_all_ranks(model)
    assert from_all(optimizer.rounds) == [5] * peers.size()
    assert bool(((weights.sum(dim=0) - 1).abs() < 1e-6).all())


DIVERGING: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda model: sgd(model, 0.05, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "Adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.05, initial_accumulator_value=0.5),
}


def poison(model: nn.Module, where: str, value: float) -> None:
    target = model[2].weight.grad if where == "gradients" else model[2].weight.data
    target[0, 0] = value


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["gradients", "parameters"])
@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
@pytest.mark.parametrize("kind", DIVERGING)
@pytest.mark.fault("diverged")
def test_a_rank_that_diverged_gets_no_weight_becomes_the_centre_and_starts_anew(
    kind: str, averaging: str, where: str, value: float, rank: int, size: int
) -> None:
    model = mlp()
    optimizer = wrap(model, DIVERGING[kind](model), period=4, pull=0.5, averaging=averaging)
    train(model, optimizer, range(4))
    for step in range(4, 8):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if rank == 0 and step == 6:
            poison(model, where, value)
        optimizer.step()
    report, center = optimizer.last_round, list(optimizer.center.values())
    weights = report.weights.clone()
    distance = report.distance
    left = {name: tensor.clone() for name, tensor in optimizer.state.get(model[0].weight, {}).items() if tensor.dim()}
    own = same(copies(model), center)
    finite = bool(across(model).isfinite().all())
    center_equal = equal_on_all_ranks(center)
    centers_finite = all(bool(tensor.isfinite().all()) for tensor in center)
    train(model, optimizer, range(8, 12))
    again, rounds = across(model), from_all(optimizer.rounds)
    assert finite
    assert center_equal
    assert centers_finite
    assert torch.equal(weights[0], torch.zeros_like(weights[0]))
    assert torch.allclose(weights.sum(dim=0), torch.ones(4, dtype=torch.float64))
    assert not math.isnan(distance)
    if rank == 0:
        assert own
        assert all(bool((tensor == 0.5).all()) for tensor in left.values()) if kind == "Adagrad" else not left
    else:
        assert left
    assert rounds == [3] * size
    assert bool(again.isfinite().all())
    assert bool((optimizer.last_round.weights[0] > 0).all())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("kind", "name"), [("momentum", "momentum_buffer"), ("Adam", "exp_avg"), ("Adagrad", "sum")])
@pytest.mark.fault("diverged")
def test_a_state_that_is_spoilt_is_made_anew_before_it_spoils_the_others(
    kind: str, name: str, value: float, rank: int
) -> None:
    model = mlp()
    optimizer = wrap(model, DIVERGING[kind](model), period=4)
    train(model, optimizer, range(6))
    if rank == 0:
        # Adagrad divides by the root of it: by that of Inf it would stand still, and not diverge.
        optimizer.state[model[2].weight][name][0, 0] = -value if name == "sum" else value
    train(model, optimizer, range(6, 8))
    finite, weights = bool(across(model).isfinite().all()), optimizer.last_round.weights[0].clone()
    train(model, optimizer, range(8, 12))
    assert finite
    assert not weights.any()
    assert bool(optimizer.state[model[2].weight][name].isfinite().all())
    assert bool(across(model).isfinite().all())
    assert bool((optimizer.last_round.weights > 0).all())


@pytest.mark.parametrize("outer_momentum", [0.0, 0.5])
@pytest.mark.parametrize("layers", ["parameter", "module"])
@pytest.mark.fault("diverged")
def test_nan_in_parameters_alone_leaks_nowhere(layers: str, outer_momentum: float, rank: int) -> None:
    model = mlp()
    optimizer = wrap(model, layers=layers, outer_momentum=outer_momentum, period=3)
    train(model, optimizer, range(3))
    train(model, optimizer, range(3, 5))
    if rank == 0:
        model[0].bias.data.fill_(torch.nan)
        set_gradients(model.parameters(), 1.0)
    optimizer.step()
    assert bool(across(model).isfinite().all())
    assert bool(across(optimizer.center.values()).isfinite().all())
    assert not optimizer.last_round.weights[0].any()
    if rank == 0:
        assert same(optimizer.center.values(), model.parameters())


@pytest.mark.parametrize("where", ["gradients", "parameters"])
@pytest.mark.parametrize("averaging", ["uniform", "grawa", "lgrawa"])
@pytest.mark.fault("all diverged")
def test_when_all_ranks_diverged_all_say_so(averaging: str, where: str, rank: int) -> None:
    model = mlp()
    optimizer = wrap(model, averaging=averaging)
    train(model, optimizer, range(3))
    optimizer.zero_grad()
    loss_of(model, 3).backward()
    poison(model, where, torch.nan if rank else torch.inf)
    found = errors(optimizer.step)
    assert [kind for kind, _ in found] == ["AllWorkersDivergedError"] * peers.size()
    assert len({text for _, text in found}) == 1
    consensus = errors(lambda: optimizer.consensus().__enter__())
    assert [kind for kind, _ in consensus] == ["AllWorkersDivergedError"] * peers.size()


@pytest.mark.fault("all diverged")
def test_training_can_go_on_from_good_parameters_after_all_ranks_diverged() -> None:
    model, good = mlp(), mlp()
    optimizer = wrap(model)
    model[0].weight.data.fill_(torch.nan)
    assert all(kind == "AllWorkersDivergedError" for kind, _ in errors(lambda: train(model, optimizer, range(2))))
    model.load_state_dict(good.state_dict())
    train(model, optimizer, range(2))
    assert bool(across(model).isfinite().all())
    assert equal_on_all_ranks(optimizer.center.values())


@pytest.mark.parametrize("policy", [grawa_hvd.GRAWA, grawa_hvd.MGRAWA, grawa_hvd.LGRAWA])
@pytest.mark.parametrize(
    "gradients",
    [
        {"name": "zero on rank 0", "rank 0": 0.0, "others": 1.0, "weight": 0.0},
        {"name": "zero everywhere", "rank 0": 0.0, "others": 0.0, "weight": None},
        {"name": "missing on rank 0", "rank 0": None, "others": 1.0, "weight": 0.0},
        {"name": "missing everywhere", "rank 0": None, "others": None, "weight": None},
        {"name": "vanishing on rank 0", "rank 0": 1e-30, "others": 1.0, "weight": 1.0},
        {"name": "vanishing everywhere", "rank 0": 1e-30, "others": 1e-30, "weight": None},
        {"name": "huge on rank 0", "rank 0": 1e30, "others": 1.0, "weight": 0.0},
        {"name": "huge everywhere", "rank 0": 1e30, "others": 1e30, "weight": None},
        {"name": "huge and vanishing", "rank 0": 1e30, "others": 1e-30, "weight": 0.0},
    ],
    ids=lambda case: case["name"],
)
@pytest.mark.fault("gradients")
def test_extreme_gradients_give_weights_that_sum_to_one(
    policy: Any, gradients: dict[str, Any], rank: int, size: int
) -> None:
    model = nn.ParameterList([torch.ones(3), torch.ones(2, 2)])
    optimizer = wrap(model, sgd(model, 1e-30), period=2, pull=1.0, averaging=policy(floor=0.0))
    value = gradients["others" if rank else "rank 0"]
    for _ in range(2):
        optimizer.zero_grad()
        if value is not None:
            set_gradients(model, value)
        optimizer.step()
    weights = optimizer.last_round.weights
    assert bool(weights.isfinite().all())
    assert torch.allclose(weights.sum(dim=0), torch.ones(2, dtype=torch.float64))
    expected = 1 / size if gradients["weight"] is None else gradients["weight"]
    assert weights[0].tolist() == pytest.approx([expected] * 2, abs=1e-12)
    assert equal_on_all_ranks(model)
    assert bool(across(model).isfinite().all())


@pytest.mark.parametrize(
    ("first", "weight"),
    [(1e-30, {2: 2 / 3, 4: 1 / 4}), (1e30, {2: 1 / 3, 4: 0.0})],
    ids=["vanishing on rank 0", "huge on rank 0"],
)
@pytest.mark.fault("gradients")
def test_the_floor_bounds_the_weight_of_extreme_gradients(
    first: float, weight: dict[int, float], rank: int, size: int
) -> None:
    """The median of two is their mean, and rank 0's norm or the other's is raised to it; of four it is another's."""
    model = nn.ParameterList([torch.ones(3), torch.ones(2, 2)])
    optimizer = wrap(model, sgd(model, 1e-30), period=1, averaging="lgrawa")
    set_gradients(model, 1.0 if rank else first)
    optimizer.step()
    assert optimizer.last_round.weights[0].tolist() == pytest.approx([weight[size]] * 2, abs=1e-12)


@pytest.mark.fault("gradients")
def test_one_layer_with_zero_gradient_on_one_rank_has_no_weight_there_alone(rank: int, size: int) -> None:
    model = nn.ParameterList([torch.ones(3), torch.ones(2, 2)])
    optimizer = wrap(model, period=1)
    set_gradients(model, 1.0)
    if rank == 0:
        model[1].grad.zero_()
    optimizer.step()
    weights = optimizer.last_round.weights
    assert torch.allclose(weights[:, 0], torch.tensor(0.5 * 2 / size, dtype=torch.float64))
    assert weights[0, 1] == 0
    assert torch.allclose(weights[1:, 1], torch.tensor(1 / (size - 1), dtype=torch.float64))


def test_two_optimizers_in_one_process_do_not_disturb_each_other(rank: int) -> None:
    alone = []
    for seed, period in ((0, 2), (1, 3)):
        model = mlp(seed)
        train(model, wrap(model, period=period, averaging="grawa"), range(12))
        alone.append(copies(model))
    models = [mlp(0), mlp(1)]
    optimizers = [wrap(model, period=period, averaging="grawa") for model, period in zip(models, (2, 3), strict=True)]
    for step in range(12):
        for model, optimizer in zip(models, optimizers, strict=True):
            train(model, optimizer, [step])
    assert [optimizer.rounds for optimizer in optimizers] == [6, 4]
    assert same(copies(models[0]), alone[0])
    assert same(copies(models[1]), alone[1])


@pytest.mark.parametrize("made", ["one more on rank 0", "in another order on rank 0"])
@pytest.mark.fault("order")
def test_ranks_meet_whatever_optimizers_each_has_made_before(made: str, rank: int) -> None:
    if made == "one more on rank 0" and rank == 0:
        wrap(mlp(7))
    order = [1, 0] if made == "in another order on rank 0" and rank == 0 else [0, 1]
    models = [mlp(0), mlp(1)]
    optimizers = {number: wrap(models[number], pull=1.0) for number in order}
    for number, model in enumerate(models):
        train(model, optimizers[number], range(2))
    assert all(optimizer.rounds == 1 for optimizer in optimizers.values())
    assert [equal_on_all_ranks(model) for model in models] == [True, True]


@pytest.mark.parametrize("raises_on", ["the first rank", "the last rank"])
@pytest.mark.fault("raises")
def test_scores_that_raise_on_one_rank_are_its_error_and_a_scores_error_elsewhere(
    raises_on: str, rank: int, size: int
) -> None:
    model = mlp()
    broken = 0 if raises_on == "the first rank" else size - 1
    calls = []

    def scores() -> Tensor:
        calls.append(len(calls))
        loss = loss_of(model, 50)
        loss.backward()
        if rank == broken and len(calls) == 2:
            raise KeyError("no batch left")
        return loss

    optimizer = wrap(model, scores=scores, pull=1.0)
    train(model, optimizer, range(3))
    optimizer.zero_grad()
    loss_of(model, 3).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    found = errors(optimizer.step)
    put_back = [parameter.grad for parameter in model.parameters()]
    rounds = from_all(optimizer.rounds)
    train(model, optimizer, range(4, 6))
    assert [kind for kind, _ in found] == ["KeyError" if r == broken else "ScoresError" for r in range(size)]
    assert all(str(broken) in text for r, (_, text) in enumerate(found) if r != broken)
    assert issubclass(grawa_hvd.ScoresError, Exception)
    assert same(gradients, put_back)
    assert rounds == [1] * size
    assert from_all(optimizer.rounds) == [2] * size
    assert equal_on_all_ranks(model)


def convolution(rank: int, change: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(4, 3), "second": nn.Linear(3, 2)})
    if rank == peers.size() - 1:
        if change == "a name":
            model["third"] = model.pop("second")
        elif change == "a shape":
            model["second"] = nn.Linear(3, 5)
        elif change == "a dtype":
            model["second"].double()
        elif change == "one parameter more":
            model["third"] = nn.Linear(2, 2, bias=False)
        elif change == "one frozen":
            model["second"].requires_grad_(False)
    return model


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "period": ({"period": 3}, "period=3"),
    "pull": ({"pull": 0.25}, "pull=0.25"),
    "proximity": ({"proximity": 0.5}, "proximity=0.5"),
    "outer_momentum": ({"outer_momentum": 0.5}, "outer_momentum=0.5"),
    "policy": ({"averaging": "mgrawa"}, "MGRAWA"),
    "floor": ({"averaging": grawa_hvd.LGRAWA(floor=0.1)}, "floor=0.1"),
    "scores": ({"scores": lambda: None}, "FreshScores"),
    "decay": ({"scores": grawa_hvd.scores.LocalScores(0.5)}, "decay=0.5"),
    "layers": ({"layers": "module"}, "module"),
    "groups": ({"groups": 2}, "bucket"),
    "compression": ({"compression": grawa_hvd.Compression.fp16}, "ompression"),
}
MODELS = {
    "a name": "second.weight",
    "a shape": "second.weight",
    "a dtype": "second.weight",
    "one parameter more": "third.weight",
    "one frozen": "second.weight",
}


@pytest.mark.parametrize("change", [*MODELS, *SETTINGS])
@pytest.mark.fault("differ")
def test_differing_layouts_and_settings_are_an_error_on_every_rank_that_names_them(
    change: str, rank: int, size: int
) -> None:
    model = convolution(rank, change)
    options, named = SETTINGS.get(change, ({}, MODELS.get(change, "")))
    optimizer = wrap(model, **(options if rank == size - 1 else {}))

    def steps() -> None:
        for _ in range(6):
            set_gradients(model.parameters(), 1.0)
            optimizer.step()

    found = errors(steps)
    assert [kind for kind, _ in found] == ["ValueError"] * size, found
    assert all(named in text and f"rank {size - 1}" in text for _, text in found)
    assert len({text for _, text in found}) == 1


@pytest.mark.fault("differ")
def test_another_version_on_one_rank_is_an_error_on_every_rank(
    rank: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rank == size - 1:
        monkeypatch.setattr(grawa_hvd, "__version__", "0.2.0")
    model = mlp()
    optimizer = wrap(model)
    found = errors(lambda: train(model, optimizer, range(1)))
    assert [kind for kind, _ in found] == ["ValueError"] * size, found
    assert all("grawa_hvd=0.2.0" in text and f"rank {size - 1}" in text for _, text in found)


@pytest.mark.parametrize("change", ["a parameter more", "unfrozen"])
@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
@pytest.mark.fault("differ")
def test_layouts_that_come_to_differ_in_a_run_are_an_error_on_every_rank(
    averaging: str, change: str, rank: int, size: int
) -> None:
    model = mlp()
    model[2].requires_grad_(False)
    optimizer = wrap(model, averaging=averaging, outer_momentum=0.3)
    train(model, optimizer, range(3))
    if rank == size - 1:
        if change == "unfrozen":
            model[2].requires_grad_(True)
        else:
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    found = errors(lambda: train(model, optimizer, range(3, 4)))
    assert [kind for kind, _ in found] == ["ValueError"] * size, found
    assert all(f"rank {size - 1}" in text for _, text in found)


@pytest.mark.ranks(4)
@pytest.mark.fault("differ")
def test_in_a_part_of_the_ranks_the_error_names_them_as_the_world_does(rank: int) -> None:
    model = mlp()
    with peers.members([1, 3]) as odd:
        optimizer = wrap(model, **odd, period=5 if rank == 3 else 2)
        found = errors(lambda: train(model, optimizer, range(2)))
    assert [kind for kind, _ in found] == ["", "ValueError", "", "ValueError"]
    assert all("'period=5' on rank 3" in found[r][1] and "'period=2' on rank 1" in found[r][1] for r in (1, 3))


@pytest.mark.parametrize("broadcast", [pytest.param(False, marks=pytest.mark.fault("start")), True])
def test_different_initial_parameters_are_warned_of_on_every_rank_unless_broadcast(
    broadcast: bool, rank: int, size: int
) -> None:
    model = mlp(seed=rank)
    optimizer = wrap(model)
    if broadcast:
        peers.broadcast(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, range(4))
    ours = [warning for warning in caught if "parameters" in str(warning.message)]
    texts = from_all([str(warning.message) for warning in ours])
    files = from_all([Path(warning.filename).name for warning in ours])
    assert [len(text) for text in texts] == [0 if broadcast else 1] * size
    if not broadcast:
        forgotten = {"horovod": "hvd.broadcast_parameters", "torch": "torch.distributed.broadcast"}[peers.TRANSPORT]
        assert all(f"did you forget {forgotten}" in text[0] for text in texts)
        assert files == [["models.py"]] * size  # which calls optimizer.step()
        assert all(str(size - 1) in text[0] for text in texts)
    assert optimizer.rounds == 2
