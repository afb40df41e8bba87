"""Small models, and what tests ask of all ranks at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import peers
import torch
from torch import Tensor, nn

import grawa_hvd


def mlp(seed: int = 0) -> nn.Sequential:
    """Two layers, four tensors; the same on every rank unless their seeds differ."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def sgd(model: nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def wrap(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **options: Any) -> Any:
    """A round every second step, weighted layer by layer, unless the options say otherwise."""
    optimizer = sgd(model) if optimizer is None else optimizer
    options = {"period": 2, "averaging": "lgrawa", **options}
    return grawa_hvd.DistributedGrawaOptimizer(optimizer, model.named_parameters(), **options)


def loss_of(model: nn.Module, step: int, rank: int | None = None) -> Tensor:
    """The loss of an MLP on a batch that this rank alone has at this step."""
    generator = torch.Generator().manual_seed(1000 * step + (peers.rank() if rank is None else rank))
    x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator)
    return nn.functional.mse_loss(model(x), y)


def train(model: nn.Module, optimizer: Any, steps: Iterable[int]) -> None:
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()


def continued(options: dict[str, Any], before: int, after: int) -> bool:
    """Whether a run goes on bitwise as it was from a checkpoint after so many steps; a collective."""
    model = mlp()
    optimizer = wrap(model, **options)
    train(model, optimizer, range(before))
    state, parameters = copy.deepcopy(optimizer.state_dict()), copies(model)
    train(model, optimizer, range(before, before + after))
    again = mlp(7)
    resumed = wrap(again, **options)
    for parameter, saved in zip(again.parameters(), parameters, strict=True):
        parameter.data.copy_(saved)
    resumed.load_state_dict(state)
    train(again, resumed, range(before, before + after))
    return same(copies(model), copies(again)) and same(optimizer.center.values(), resumed.center.values())


def set_gradients(parameters: Iterable[Tensor], value: float | Tensor) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) + torch.as_tensor(value, dtype=parameter.dtype)


def copies(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    """Whether two lists of tensors are bitwise equal."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def flat(tensors: nn.Module | Iterable[Tensor]) -> Tensor:
    """All values in a row, float64."""
    listed = tensors.parameters() if isinstance(tensors, nn.Module) else tensors
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in listed])


def across(values: nn.Module | Iterable[Tensor]) -> Tensor:
    """The values of every rank, [M, values]; a collective."""
    return peers.gather(flat(values))


def from_all(value: Any) -> list[Any]:
    """What every rank has, in order of rank; a collective."""
    return peers.gather_objects(value)


def equal_on_all_ranks(values: nn.Module | Iterable[Tensor]) -> bool:
    rows = across(values)
    return torch.equal(rows, rows[:1].expand_as(rows))


def errors(call: Callable[[], Any]) -> list[tuple[str, str]]:
    """Type and text of what `call` raises, of every rank; empty where it returns. A collective."""
    raised = ("", "")
    try:
        call()
    except Exception as error:  # any: the test asks which
        raised = (type(error).__name__, str(error))
    return from_all(raised)
