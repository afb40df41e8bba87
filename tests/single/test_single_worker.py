"""One worker alone: bitwise the wrapped optimizer (docs/design.md, what tests hold every run to, 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import horovod.torch as hvd
import pytest
import torch

import grawa_hvd

POLICIES = ["grawa", "mgrawa", "lgrawa", "uniform"]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.05),
}


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    hvd.init()
    yield
    hvd.shutdown()


def train(make: Callable[[Any], torch.optim.Optimizer], options: dict[str, Any] | None, scaled: bool) -> tuple:
    """Ten steps; under GradScaler the seventh overflows. Returns the model's and the optimizer's states, and rounds."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    optimizer: Any = make(model.parameters())
    if options is not None:
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            optimizer, model.named_parameters(), **{"averaging": "lgrawa", **options}
        )
    scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0, growth_interval=3)
    for step in range(10):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 5)).square().mean()
        scaler.scale(loss * (float("inf") if scaled and step == 6 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    return model.state_dict(), optimizer.state_dict(), getattr(optimizer, "rounds", 0)


def assert_bitwise_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "gradscaler"])
@pytest.mark.parametrize("averaging", POLICIES)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_one_worker_is_bitwise_the_wrapped_optimizer(
    make: Callable[[Any], torch.optim.Optimizer], averaging: str, scaled: bool
) -> None:
    options = {"averaging": averaging, "period": 2, "proximity": 0.5, "outer_momentum": 0.7}
    model, state, rounds = train(make, options, scaled)
    expected_model, expected_state, _ = train(make, None, scaled)
    assert rounds == 0
    assert_bitwise_equal(model, expected_model)
    assert state.keys() == expected_state.keys()
    assert state["param_groups"] == expected_state["param_groups"]
    assert_bitwise_equal(state["state"], expected_state["state"])


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": 3}, {"fragments": 2}, {"local_period": 2}, {"compression": grawa_hvd.Compression.fp16},
        {"overlap": 2, "fragments": 3, "local_period": 1, "compression": hvd.Compression.fp16, "outer_momentum": 0.7},
    ],
    ids=str,
)  # fmt: skip
def test_one_worker_has_no_rounds_to_arrange(options: dict[str, Any]) -> None:
    reports: list[Any] = []
    options = {"period": 4, "proximity": 0.5, "on_round": reports.append, **options}
    model, state, rounds = train(OPTIMIZERS["momentum"], options, scaled=False)
    expected_model, expected_state, _ = train(OPTIMIZERS["momentum"], None, scaled=False)
    assert (rounds, reports) == (0, [])
    assert_bitwise_equal(model, expected_model)
    assert_bitwise_equal(state["state"], expected_state["state"])


def test_one_worker_never_calls_for_fresh_scores() -> None:
    def refuse() -> None:
        raise AssertionError("nobody is there to be compared with")

    model, _, rounds = train(OPTIMIZERS["sgd"], {"scores": refuse, "period": 2}, scaled=False)
    expected, _, _ = train(OPTIMIZERS["sgd"], None, scaled=False)
    assert rounds == 0
    assert_bitwise_equal(model, expected)


def test_consensus_of_one_is_its_own_model() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = grawa_hvd.DistributedGrawaOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), period=1)
    own = model.weight.detach().clone()
    with optimizer.consensus():
        assert torch.equal(model.weight, own)
    assert torch.equal(model.weight, own)
    assert optimizer.last_round is None
    assert optimizer.center is None


def test_a_checkpoint_of_another_version_is_refused() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = grawa_hvd.DistributedGrawaOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    state = {**optimizer.state_dict(), "grawa": {"version": 4}}
    with pytest.raises(ValueError, match=r"grawa version must be one of \(1, 2, 3\), but is 4"):
        optimizer.load_state_dict(state)
