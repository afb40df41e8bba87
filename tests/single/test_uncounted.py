"""Steps that bring no round are told of, and `step` takes what the wrapped optimizer's takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class Sam(torch.optim.SGD):
    """Sharpness-aware minimisation (Foret et al., ICLR 2021), whose users call its two halves by their names."""

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["old"] = parameter.detach().clone()
            parameter.add_(parameter.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(self.state[parameter]["old"])
            parameter.sub_(parameter.grad, alpha=0.1)

    def step(self, closure: Callable[[], Tensor]) -> None:
        with torch.enable_grad():
            closure()
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class ScheduleFree(torch.optim.SGD):
    """Moves parameters where training ends and begins again, as schedule-free optimizers do."""

    @torch.no_grad()
    def eval(self) -> None:
        self.param_groups[0]["params"][0].mul_(1.0)

    train = eval


class Bare(torch.optim.SGD):
    @torch.no_grad()
    def step(self) -> str:
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad)
        return "bare"


class Keyword(Bare):
    def step(self, *, scale: float = 1.0) -> str:
        Bare.step(self)
        return f"scaled by {scale}"


def backward(model: nn.Module) -> Tensor:
    model.zero_grad()
    loss = model(torch.ones(2, 3)).square().sum()
    loss.backward()
    return loss


def run(kind: type[torch.optim.Optimizer], train: Callable[[nn.Module, Any, Any], Any], workers: int = 2) -> list[Any]:
    """What `train(model, plain, wrapped)` returns on each of some workers."""

    def work(transport: LocalTransport) -> Any:
        model = nn.Linear(3, 2)
        nn.init.constant_(model.weight, 0.5)
        nn.init.constant_(model.bias, 0.5)
        plain = kind(model.parameters(), lr=0.01)
        wrapped: Any = grawa_hvd.DistributedGrawaOptimizer(
            plain, model.named_parameters(), process_group=transport, period=2, averaging="uniform"
        )
        return train(model, plain, wrapped)

    return run_workers(workers, work)


def by_halves(model: nn.Module, plain: Any, wrapped: Any) -> None:
    for _ in range(2):
        backward(model)
        wrapped.first_step()
        backward(model)
        wrapped.second_step()


def by_the_plain_one(model: nn.Module, plain: Any, wrapped: Any) -> None:
    step = plain.step
    for _ in range(3):
        backward(model)
        step()


def by_closures(model: nn.Module, plain: Any, wrapped: Any) -> int:
    for _ in range(6):
        wrapped.step(lambda: backward(model))
    return int(wrapped.rounds)


def with_breaks(model: nn.Module, plain: Any, wrapped: Any) -> int:
    for _ in range(4):
        wrapped.train()
        backward(model)
        wrapped.step()
        wrapped.eval()
    return int(wrapped.rounds)


@pytest.mark.parametrize(
    ("kind", "train", "told"),
    [
        (Sam, by_halves, r"second_step\(\) and its like have moved .* without a call of optimizer.step\(\)"),
        (torch.optim.AdamW, by_the_plain_one, "the plain AdamW from before the wrapping is stepped"),
    ],
)
def test_steps_that_do_not_count_are_told_of_once(
    kind: type[torch.optim.Optimizer], train: Callable[..., Any], told: str
) -> None:
    with pytest.warns(UserWarning, match=told) as seen:
        run(kind, train)
    assert len(seen) == 2  # one a worker
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # alone, nobody trains apart
        run(kind, train, workers=1)


@pytest.mark.parametrize(("kind", "train", "rounds"), [(Sam, by_closures, 3), (ScheduleFree, with_breaks, 2)])
def test_what_moves_parameters_within_or_between_steps_is_left_alone(
    kind: type[torch.optim.Optimizer], train: Callable[..., Any], rounds: int
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*step")
        assert run(kind, train) == [rounds] * 2


@pytest.mark.parametrize(
    ("kind", "named", "result"),
    [(Bare, {}, "bare"), (Keyword, {}, "scaled by 1.0"), (Keyword, {"scale": 2.0}, "scaled by 2.0")],
)
def test_step_takes_and_returns_what_that_of_the_wrapped_optimizer_does(
    kind: type[torch.optim.Optimizer], named: dict[str, float], result: str
) -> None:
    def train(model: nn.Module, plain: Any, wrapped: Any) -> list[Any]:
        backward(model)
        return [wrapped.step(**named), wrapped.step(**named), wrapped.rounds]

    assert run(kind, train) == [[result, result, 1]] * 2
