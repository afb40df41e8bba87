"""What was infinite when training began, as −inf of forbidden transitions, stays so and is no divergence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class Plain(torch.optim.SGD):
    """Stepped by torch, since it is not exactly SGD."""


class Chain(nn.Module):
    """A chain of three states, of which the first cannot follow itself."""

    def __init__(self, forbidden: float = -torch.inf) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(3, 3))
        self.emissions = nn.Parameter(torch.full((3,), 0.5))
        with torch.no_grad():
            self.transitions[0, 0] = forbidden

    def forward(self, scale: float) -> Tensor:
        alpha = self.emissions * scale
        for _ in range(3):
            alpha = torch.logsumexp(alpha[:, None] + self.transitions, 0) + self.emissions
        return torch.logsumexp(alpha, 0) - alpha[1]


OPTIONS = [
    {}, {"averaging": "uniform", "pull": 1.0}, {"outer_momentum": 0.5}, {"overlap": 1}, {"layers": "module"},
    {"compression": grawa_hvd.Compression.fp16}, {"kind": Plain}, {"kind": torch.optim.AdamW},
]  # fmt: skip


def wrap(model: nn.Module, transport: LocalTransport, kind: Any = torch.optim.SGD, **options: Any) -> Any:
    options = {"averaging": "lgrawa", "period": 3, "pull": 0.5, "proximity": 0.5, **options}
    optimizer = kind(model.parameters(), lr=0.05, weight_decay=0.0)
    return grawa_hvd.DistributedGrawaOptimizer(optimizer, model.named_parameters(), process_group=transport, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_others_train_as_if_the_forbidden_were_merely_unlikely(options: dict[str, Any]) -> None:
    """exp(−10⁴) is 0 in float32, so that all gradients are the same."""

    def work(transport: LocalTransport, forbidden: float) -> tuple[Tensor, Tensor]:
        model = Chain(forbidden)
        optimizer = wrap(model, transport, **options)
        for step in range(9):
            optimizer.zero_grad()
            model(1.0 + transport.rank + step % 2).backward()
            optimizer.step()
            assert model.transitions[0, 0] <= -1e4 / 2
        with optimizer.consensus():
            mean = model.transitions.detach().clone()
        return model.transitions.detach().clone(), mean

    found = run_workers(2, lambda transport: work(transport, -torch.inf))
    expected = run_workers(2, lambda transport: work(transport, -1e4))
    for ours, theirs in zip(found, expected, strict=True):
        for own, other in zip(ours, theirs, strict=True):
            assert own[0, 0] == -torch.inf
            assert (own.flatten()[1:] != 0).all()
            # In 16 bits the scale of the differences follows from their largest: float16 has eleven bits.
            tolerance = 2.0**-10 if "compression" in options else 2.0**-20
            torch.testing.assert_close(own.flatten()[1:], other.flatten()[1:], rtol=tolerance, atol=tolerance)


def test_one_that_the_user_has_allowed_since_trains_like_the_others() -> None:
    def work(transport: LocalTransport) -> Tensor:
        model = Chain()
        optimizer = wrap(model, transport, averaging="uniform", pull=1.0, proximity=0.0)
        for step in range(6):
            if step == 4:
                with torch.no_grad():
                    model.transitions[0, 0] = -1.0
            optimizer.zero_grad()
            model(1.0 + transport.rank).backward()
            optimizer.step()
        return model.transitions.detach().clone()

    first, second = run_workers(2, work)
    assert torch.equal(first, second)
    assert first[0, 0] != -1.0 and first.isfinite().all()


@pytest.mark.fault("diverged")
def test_a_worker_that_diverges_is_healed_but_for_them() -> None:
    def work(transport: LocalTransport) -> Tensor:
        model = Chain()
        optimizer = wrap(model, transport)
        for step in range(6):
            optimizer.zero_grad()
            model(1.0).backward()
            if step == 1 and transport.rank == 1:
                model.transitions.grad[1, 1] = -torch.inf
            optimizer.step()
        assert optimizer.last_round.weights.min() > 0
        return model.transitions.detach().clone()

    for transitions in run_workers(2, work):
        assert transitions[0, 0] == -torch.inf and transitions.flatten()[1:].isfinite().all()


@pytest.mark.fault("differ")
def test_workers_that_have_not_the_same_are_told() -> None:
    def work(transport: LocalTransport) -> str:
        model = Chain(-torch.inf if transport.rank else 0.0)
        optimizer = wrap(model, transport)
        model(1.0).backward()
        with pytest.raises(ValueError, match="transitions: 1 infinite elements") as error:
            optimizer.step()
        return str(error.value)

    first, second = run_workers(2, work)
    assert first == second


def test_on_round_sees_them_as_they_are() -> None:
    def work(transport: LocalTransport) -> list[float]:
        model, seen = Chain(), []
        optimizer = wrap(model, transport, on_round=lambda _: seen.append(model.transitions[0, 0].item()))
        for _ in range(3):
            optimizer.zero_grad()
            model(1.0).backward()
            optimizer.step()
        return seen

    assert run_workers(2, work) == [[-torch.inf]] * 2


class WithUnused(Chain):
    """Has memory that was never filled and is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.full((3,), torch.nan))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_nan_in_a_parameter_that_is_never_used_is_no_divergence(options: dict[str, Any]) -> None:
    def work(transport: LocalTransport, model: Chain) -> Tensor:
        optimizer = wrap(model, transport, **options)
        for step in range(7):
            optimizer.zero_grad()
            model(1.0 + transport.rank + step % 2).backward()
            optimizer.step()
        if isinstance(model, WithUnused):
            assert model.unused.isnan().all()
        with optimizer.consensus():
            return model.emissions.detach().clone()

    found = run_workers(2, lambda transport: work(transport, WithUnused()))
    expected = run_workers(2, lambda transport: work(transport, Chain()))
    if options.get("layers") != "module" and "compression" not in options:
        assert all(map(torch.equal, found, expected))
    assert all(emissions.isfinite().all() for emissions in found)


@pytest.mark.fault("all diverged")
def test_nan_where_there_is_a_gradient_is_a_divergence() -> None:
    def work(transport: LocalTransport) -> None:
        model = Chain()
        nn.init.constant_(model.emissions, torch.nan)
        optimizer = wrap(model, transport, averaging="uniform")
        with pytest.raises(grawa_hvd.AllWorkersDivergedError):
            for _ in range(3):
                optimizer.zero_grad()
                model(1.0).backward()
                optimizer.step()

    run_workers(2, work)
