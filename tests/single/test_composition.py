"""Every policy with every option: all workers agree, or it is refused by name when the optimizer is made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from workers import Learner

import grawa_hvd
from grawa_hvd.averaging import POLICIES
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS = 4
HOSTS = ["a", "a", "b", "b"]
# Policies that cannot be made without arguments: name → how they are made.
MADE: dict[str, Callable[[], Any]] = {}
REFUSED = {  # cells that have no meaning: (policy, option) → what the ValueError says
    **{
        (policy, option): "only one of these can move the centre"
        for policy in ("diloco", "slowmo", "bmuf")
        for option in ("outer_momentum", "outer_optimizer")
    },
    **{
        ("decentralized", option): "there is no centre of all"
        for option in ("outer_momentum", "outer_optimizer", "local_period")
    },
    ("decentralized", "compression"): "and there is none",
}


@dataclass(frozen=True)
class Option:
    """A column of the matrix.

    Attributes:
        options: of the optimizer.
        train: what a worker does, given itself and its transport; it returns what all workers must have alike.
    """

    train: Callable[[Learner, LocalTransport], Any]
    options: dict[str, Any] = field(default_factory=dict)


def plainly(learner: Learner, transport: LocalTransport) -> Any:
    learner.step(14)
    learner.optimizer.state_dict()  # finishes what is under way
    return seen(learner)


def overflowing(learner: Learner, transport: LocalTransport) -> Any:
    """As under GradScaler where gradients of rank 0 overflow in the fourth step."""
    for step in range(14):
        learner.optimizer.grad_scale = torch.ones(())
        learner.optimizer.found_inf = torch.full((), float(step == 3 and learner.rank == 0))
        learner.step()
    return seen(learner)


def leaving(learner: Learner, transport: LocalTransport) -> Any:
    """The last worker has data for two rounds, as with hvd.join."""
    learner.step(9)
    if learner.rank == WORKERS - 1:
        transport.leave()
        return None
    learner.step(5)
    return seen(learner)


def with_a_checkpoint(new: Callable[[], Learner]) -> Any:
    """What a worker sees that goes on from a checkpoint; asserts that it is bitwise what it would have seen."""
    learner, loaded = new(), new()
    learner.step(6)
    state, parameters = copy.deepcopy(learner.optimizer.state_dict()), learner.parameters()
    learner.step(8)
    loaded.optimizer.load_state_dict(state)
    for parameter, saved in zip(loaded.model, parameters, strict=True):
        parameter.data.copy_(saved)
    loaded.steps = 6
    loaded.step(8)
    for one in (learner, loaded):
        one.optimizer.state_dict()  # finishes what is under way
    assert torch.equal(loaded.flat(), learner.flat())
    return seen(loaded)


def seen(learner: Learner) -> Any:
    """What must be the same on all workers: the rounds, the consensus, and the centre where all have one."""
    optimizer, report = learner.optimizer, learner.optimizer.last_round
    assert learner.flat().isfinite().all()
    with optimizer.consensus():
        found = [optimizer.rounds, *learner.parameters()]
    if learner.averaging == "decentralized":  # each has a centre of its own
        return found
    return [*found, report.weights, *(optimizer.center or {}).values()]


MATRIX: dict[str, Option] = {
    "nothing": Option(plainly),
    "overlap": Option(plainly, {"overlap": 2}),
    "fragments": Option(plainly, {"fragments": 2}),
    "local_period": Option(plainly, {"local_period": 2}),
    "compression": Option(plainly, {"compression": grawa_hvd.Compression.fp16}),
    "outer_momentum": Option(plainly, {"outer_momentum": 0.5}),
    "outer_optimizer": Option(plainly, {"outer_optimizer": partial(torch.optim.SGD, lr=0.7)}),
    "optimizer_state=average": Option(plainly, {"optimizer_state": "average"}),
    "optimizer_state=reset": Option(plainly, {"optimizer_state": "reset"}),
    "buffers": Option(plainly, {"buffers": "a running mean"}),
    "warmup_steps": Option(plainly, {"warmup_steps": 3}),
    "found_inf": Option(overflowing),
    "join": Option(leaving),
}


def made(policy: str) -> Any:
    return MADE[policy]() if policy in MADE else policy


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def alike(results: list[Any]) -> bool:
    first, *others = [result for result in results if result is not None]
    return all(
        len(first) == len(other)
        and all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(first, other, strict=True))
        for other in others
    )


def new(transport: LocalTransport, policy: str, option: str) -> Learner:
    options = dict(MATRIX[option].options)
    if "buffers" in options:
        options["buffers"] = [("mean", torch.full((2,), float(transport.rank)))]
    return Learner(transport, wrapped=momentum, averaging=made(policy), **options)


@pytest.mark.parametrize("option", MATRIX)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_with_every_option(policy: str, option: str) -> None:
    if (policy, option) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[policy, option]) as error:
            run_workers(1, lambda transport: new(transport, policy, option))
        assert option.partition("=")[0] in str(error.value) and policy in str(error.value).lower()
        return
    train = MATRIX[option].train
    results = run_workers(WORKERS, lambda transport: train(new(transport, policy, option), transport), HOSTS)
    assert alike(results)
    assert results[0][0] >= 3


SAVED = [
    (policy, name)
    for policy in POLICIES
    for name, option in MATRIX.items()
    if option.train is plainly and (policy, name) not in REFUSED
]


@pytest.mark.parametrize(("policy", "option"), SAVED)
def test_every_policy_goes_on_from_a_checkpoint(policy: str, option: str) -> None:
    results = run_workers(WORKERS, lambda transport: with_a_checkpoint(partial(new, transport, policy, option)), HOSTS)
    assert alike(results)
