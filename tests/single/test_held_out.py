"""Scores on a batch that all workers share, and whether they do share it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.scores import losses_differ
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS = 3


def batch(seed: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))


def run(
    transport: LocalTransport, closure: Callable[[nn.Module, int], Any], starts: Any = None, steps: int = 4
) -> dict[str, Any]:
    """What a worker sees that trains with held-out scores; `closure` is given its model and its rank."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    generator = torch.Generator().manual_seed(starts[transport.rank] if starts else 0)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), process_group=transport, period=2,
        averaging="mgrawa", scores=grawa_hvd.HeldOutScores(lambda: closure(model, transport.rank)),
    )  # fmt: skip
    gradients = [torch.full_like(parameter, 1.0 + transport.rank) for parameter in model.parameters()]
    kept = []
    for _ in range(steps):
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        owned = [parameter.grad for parameter in model.parameters()]
        optimizer.step()
        kept.extend(p.grad is own and torch.equal(own, gradient)
                    for p, own, gradient in zip(model.parameters(), owned, gradients, strict=True))  # fmt: skip
    return {"kept": all(kept), "weights": optimizer.last_round.weights, "losses": optimizer.last_round.losses}


def shared(model: nn.Module, rank: int) -> Tensor:
    model.eval()
    loss = model(batch(0)).square().mean()
    loss.backward()
    return loss


def own(model: nn.Module, rank: int) -> Tensor:
    model.eval()
    loss = model(batch(rank)).square().mean()
    loss.backward()
    return loss


def dropping(model: nn.Module, rank: int) -> Tensor:
    model.train()
    loss = model(batch(0)).square().mean()
    loss.backward()
    return loss


def errors(closure: Callable[[nn.Module, int], Any], **options: Any) -> list[tuple[str, str]]:
    def work(transport: LocalTransport) -> tuple[str, str]:
        try:
            run(transport, closure, **options)
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    return run_workers(WORKERS, work)


def test_a_shared_batch_is_scored_and_no_gradient_of_the_users_is_changed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = run_workers(WORKERS, lambda transport: run(transport, shared))
    assert all(result["kept"] for result in results)
    assert all(torch.equal(result["weights"], results[0]["weights"]) for result in results)
    assert float((results[0]["weights"] - 1 / WORKERS).abs().max()) > 0.01
    assert results[0]["losses"].isfinite().all()


@pytest.mark.fault("differ")
def test_batches_that_differ_are_one_error_on_every_rank() -> None:
    found = errors(own)
    assert found == [found[0]] * WORKERS
    assert found[0][0] == "ValueError"
    assert found[0][1].startswith("HeldOutScores needs one batch that all workers share, but with the same parameters")


@pytest.mark.fault("start")
def test_where_workers_start_from_different_parameters_nothing_can_be_compared() -> None:
    with pytest.warns(UserWarning, match="the initial parameters of rank"):
        assert errors(shared, starts=[0, 1, 2]) == [("", "")] * WORKERS


def test_a_callable_that_is_not_deterministic_is_a_warning_and_not_compared() -> None:
    with pytest.warns(UserWarning, match=r"returned the losses .* for the same parameters, so whether all ranks pass"):
        assert errors(dropping) == [("", "")] * WORKERS


def test_the_rest_are_compared_where_one_is_not_deterministic() -> None:
    with pytest.warns(UserWarning, match="returned the losses"):
        found = errors(lambda model, rank: (dropping if rank == 1 else own)(model, rank))
    assert [kind for kind, _ in found] == ["ValueError"] * WORKERS
    assert "on rank 1" not in found[0][1] and "on rank 2" in found[0][1]


def test_dropout_that_is_seeded_within_is_deterministic() -> None:
    def seeded(model: nn.Module, rank: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            noise = torch.rand(16, 4, generator=torch.Generator().manual_seed(5))
            loss = model.eval()(batch(0) * noise).square().mean()
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert errors(seeded) == [("", "")] * WORKERS


@pytest.mark.parametrize("returned", [None, "low", torch.ones(2)], ids=str)
@pytest.mark.fault("raises")
def test_without_a_loss_that_is_told_on_every_rank(returned: Any) -> None:
    found = errors(lambda model, rank: returned if rank == 1 else shared(model, rank))
    assert [kind for kind, _ in found] == ["ScoresError", "ValueError", "ScoresError"]
    assert found[1][1] == f"the callable of HeldOutScores must return its loss, one number, but returned {returned!r}"


@pytest.mark.fault("raises")
def test_what_the_callable_raises_is_raised_there_and_told_elsewhere() -> None:
    def failing(model: nn.Module, rank: int) -> Tensor:
        raise ZeroDivisionError if rank == 2 else KeyError("no such batch")

    assert [kind for kind, _ in errors(failing)] == ["KeyError", "KeyError", "ZeroDivisionError"]


def test_random_numbers_that_the_trial_draws_are_put_back() -> None:
    model = nn.Linear(2, 1)
    source = grawa_hvd.HeldOutScores(lambda: float(torch.rand(())))
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="returned the losses"):
        assert not source.trial(list(model.parameters())) > 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("one", "other", "differ"),
    [(2.0, 2.0, False), (2.0, 2.0 * (1 + 2.0**-11), False), (2.0, 2.01, True), (0.0, 0.0, False), (-1.0, 1.0, True),
     (float("nan"), float("nan"), False)],
)  # fmt: skip
def test_losses_differ_where_rounding_does_not_explain_it(one: float, other: float, differ: bool) -> None:
    assert losses_differ(one, other) is differ
