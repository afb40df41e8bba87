"""`hvd.broadcast_parameters` and `hvd.broadcast_optimizer_state`, the two lines that begin every Horovod script."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from models import copies, equal_on_all_ranks, errors, from_all, loss_of, mlp, same, sgd, train, wrap
from torch import nn

import grawa_hvd

hvd = pytest.importorskip("horovod.torch", reason=peers.OF_HOROVOD)

# What is tested here does not depend on how many ranks there are.
pytestmark = [pytest.mark.horovod, pytest.mark.ranks(2)]

OPTIMIZERS = sorted(
    name for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    and kind is not torch.optim.LBFGS
)  # fmt: skip
FIRST = {"lr": 0.02, "momentum": 0.8, "weight_decay": 0.2, "betas": (0.9, 0.999), "etas": (0.8, 2.4), "centered": True}
SECOND = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "betas": (0.8, 0.9), "etas": (0.25, 1.75), "centered": True}


def network(name: str, seed: int = 0) -> nn.Sequential:
    """An MLP; without biases for Muon, which takes matrices alone."""
    torch.manual_seed(seed)
    bias = name != "Muon"
    return nn.Sequential(nn.Linear(4, 3, bias), nn.Tanh(), nn.Linear(3, 2, bias))


def plain(name: str, model: nn.Module, options: dict[str, Any]) -> torch.optim.Optimizer:
    kind = getattr(torch.optim, name)
    known = inspect.signature(kind.__init__).parameters
    return kind(list(model.parameters()), **{key: value for key, value in options.items() if key in known})


def ours(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return wrap(model, optimizer, period=3)


def horovods(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())


def backward(name: str, model: nn.Module, step: int) -> None:
    loss_of(model, step).backward()
    if name == "SparseAdam":
        for parameter in model.parameters():
            parameter.grad = parameter.grad.to_sparse()


def step(name: str, model: nn.Module, optimizer: Any, number: int) -> None:
    optimizer.zero_grad()
    backward(name, model, number)
    optimizer.step()


def no_worse_than_horovod(scenario: Callable[[Callable[..., Any]], None]) -> None:
    """Run it with both; what Horovod's optimizer cannot do with this torch, ours need not do."""
    theirs = errors(lambda: scenario(horovods))
    if any(theirs[0]):
        mine = errors(lambda: scenario(ours))
        assert [kind for kind, _ in mine] in ([kind for kind, _ in theirs], [""] * hvd.size())
        pytest.skip(f"hvd.DistributedOptimizer: {theirs[0][0]}: {theirs[0][1][:60]}")
    scenario(ours)


def tensors_of(optimizer: Any) -> list[torch.Tensor]:
    state = optimizer.state_dict()["state"]
    values = [state[key][name] for key in sorted(state) for name in sorted(state[key])]
    return [torch.as_tensor(value) for value in values if isinstance(value, (int, float, torch.Tensor))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_of_rank_0_reaches_all_after_a_step_and_training_goes_on(name: str) -> None:
    def scenario(distribute: Callable[..., Any]) -> None:
        model = network(name)
        optimizer = distribute(model, plain(name, model, FIRST))
        step(name, model, optimizer, 0)
        roots = from_all((copies(model), tensors_of(optimizer)))[0]
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        assert same(copies(model), roots[0])
        assert len(tensors_of(optimizer)) == len(roots[1])
        assert all(torch.equal(a.double(), b.double()) for a, b in zip(tensors_of(optimizer), roots[1], strict=True))
        step(name, model, optimizer, 1)
        step(name, model, optimizer, 2)
        if distribute is ours:
            assert from_all(optimizer.rounds) == [1] * hvd.size()

    no_worse_than_horovod(scenario)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_phantom_step_on_a_fresh_optimizer_neither_counts_nor_communicates(name: str, rank: int) -> None:
    def scenario(distribute: Callable[..., Any]) -> None:
        model = network(name, seed=rank)
        optimizer = distribute(model, plain(name, model, FIRST))
        # Horovod's class may step on this rank alone: it bypasses the wrapper.
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        assert equal_on_all_ranks(model)
        if distribute is not ours:
            return
        rounds = []
        for number in range(3):
            rounds.append(optimizer.rounds)
            step(name, model, optimizer, number)
        assert [*rounds, optimizer.rounds] == [0, 0, 0, 1]
        assert optimizer.last_round.step == 3

    no_worse_than_horovod(scenario)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fresh_ranks_take_the_state_of_a_trained_rank_0(name: str, rank: int) -> None:
    """The phantom step happens on some ranks only: it must not wait for the others."""
    model = network(name, seed=rank)
    optimizer = plain(name, model, FIRST)
    if rank == 0:
        step(name, model, optimizer, 0)
    optimizer = ours(model, optimizer)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    states = from_all([tensor.double() for tensor in tensors_of(optimizer)])
    assert same(states[rank], states[0])
    for number in range(3):
        step(name, model, optimizer, number)
    assert from_all(optimizer.rounds) == [1] * hvd.size()


def test_lbfgs_is_refused_by_horovods_broadcast_as_the_plain_optimizer_is() -> None:
    model = mlp()
    optimizer = wrap(model, torch.optim.LBFGS(model.parameters()))
    with pytest.raises(ValueError, match=r"cannot broadcast torch\.optim\.LBFGS state"):
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_options_of_parameter_groups_become_those_of_rank_0(name: str, rank: int) -> None:
    def scenario(distribute: Callable[..., Any]) -> None:
        model = network(name)
        optimizer = distribute(model, plain(name, model, SECOND if rank else FIRST))
        step(name, model, optimizer, 0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        group = optimizer.param_groups[0]
        for key in FIRST.keys() & inspect.signature(getattr(torch.optim, name).__init__).parameters.keys():
            assert group[key] == pytest.approx(FIRST[key])
            assert type(group[key]) is type(FIRST[key])
        step(name, model, optimizer, 1)

    no_worse_than_horovod(scenario)


def test_integer_parameters_without_gradient_are_left_out_of_it() -> None:
    class Selected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.which = nn.Parameter(torch.tensor([1, 3]), requires_grad=False)
            self.values = nn.Parameter(torch.rand(4))

    model = Selected()
    optimizer = wrap(model, sgd(model, momentum=0.9, nesterov=True, weight_decay=1e-6), period=1)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert model.which.grad is None
    assert equal_on_all_ranks([model.values.grad])
    optimizer.zero_grad()
    torch.index_select(model.values, 0, model.which).sum().backward()
    optimizer.step()
    assert optimizer.last_round.layer_names == ["values"]
    assert model.which.tolist() == [1, 3]


def test_parameters_that_were_broadcast_raise_no_warning(rank: int, recwarn: pytest.WarningsRecorder) -> None:
    model = mlp(seed=rank)
    optimizer = grawa_hvd.DistributedGrawaOptimizer(sgd(model, momentum=0.9), model.named_parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    train(model, optimizer, range(1))
    assert not [warning for warning in recwarn if "initial parameters" in str(warning.message)]


@pytest.mark.parametrize("parameters_last", [False, True])
def test_parameters_that_the_phantom_step_decayed_after_their_broadcast_are_warned_of(
    parameters_last: bool, recwarn: pytest.WarningsRecorder, rank: int
) -> None:
    """A Horovod script that resumes: rank 0 alone has a state, so the other ranks alone make that step."""
    model = mlp()
    optimizer = sgd(model, momentum=0.9, weight_decay=0.1)
    if rank == 0:
        train(model, optimizer, range(1))
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    if parameters_last:
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    train(model, grawa_hvd.DistributedGrawaOptimizer(optimizer, model.named_parameters()), range(1))
    found = [text for warning in recwarn if "initial parameters" in (text := str(warning.message))]
    assert len(found) == (0 if parameters_last else 1)
    assert all("or call it before hvd.broadcast_optimizer_state()" in text for text in found)
