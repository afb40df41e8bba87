"""What holds of every run, whatever the model (docs/design.md, "What is computed"), `consensus()`, memory."""

from __future__ import annotations

import functools
import gc
import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
from peers import hvd
from torch import Tensor

import grawa_hvd

pytestmark = pytest.mark.ranks(min=2)

POLICIES = ["grawa", "mgrawa", "lgrawa", "uniform"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def network(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Alike on every rank: each test starts from the same seed."""
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2)).to(dtype)


def batch(step: int, dtype: torch.dtype, rank: int, features: int = 5) -> Tensor:
    """Of this rank alone; ranks differ in scale too, and so in gradient norms."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return ((1 + rank) * torch.randn(4, features, generator=generator)).to(dtype)


def train(model: torch.nn.Module, optimizer: Any, steps: int, first: int = 0) -> None:
    parameter = next(model.parameters())
    for step in range(first, first + steps):
        optimizer.zero_grad()
        model(batch(step, parameter.dtype, peers.rank(), parameter.size(1))).square().mean().backward()
        optimizer.step()


def averaged_sgd(model: torch.nn.Module, lr: float = 0.05, **options: Any) -> Any:
    return grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=lr), model.named_parameters(), **{"averaging": "lgrawa", **options}
    )


def raw(tensors: Iterator[Tensor] | list[Tensor]) -> Tensor:
    """The bytes."""
    return torch.cat([tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in tensors])


def same_on_all_ranks(tensors: Iterator[Tensor] | list[Tensor]) -> bool:
    everywhere = peers.gather(raw(tensors))
    return bool((everywhere == everywhere[:1]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_uniform_every_step_is_the_averaging_of_gradients(dtype: torch.dtype, size: int) -> None:
    """τ = 1, λ = 1, μ = 0 with plain SGD, beside hvd.DistributedOptimizer or DistributedDataParallel.

    The bound: of numbers no larger than `largest`, ours rounds the update once, the share 1/M once and the sum M − 1
    times; theirs the sum and the mean of gradients M times, times lr, and the update once: 2M + 2 roundings of
    eps/2. The gradients' own rounding is scaled by lr·curvature < 1/4 and adds less than as much again. The loss is
    quadratic, so with lr·curvature < 1 a step does not stretch errors: those of T steps add up.
    """
    steps, found = 20, []
    for kind in ("grawa", "gradients"):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 2).to(dtype)
        if kind == "grawa":
            optimizer = averaged_sgd(model, 0.01, averaging="uniform", period=1, pull=1.0, proximity=0.0)
        else:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            if peers.TRANSPORT == "horovod":
                optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters())
            else:
                model = torch.nn.parallel.DistributedDataParallel(model)
        train(model, optimizer, steps)
        found.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    ours, theirs = found
    torch.manual_seed(0)
    largest = max(parameter.abs().max().item() for parameter in torch.nn.Linear(5, 2).parameters())
    assert float((ours - theirs).abs().max()) <= steps * (2 * size + 2) * torch.finfo(dtype).eps * largest
    assert same_on_all_ranks([ours])


@by_dtype
@pytest.mark.parametrize("outer_momentum", [0.0, 0.7])
@pytest.mark.parametrize("averaging", POLICIES)
def test_center_is_bitwise_the_same_on_every_rank(averaging: str, outer_momentum: float, dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = averaged_sgd(model, averaging=averaging, period=2, outer_momentum=outer_momentum)
    same = []
    for round_ in range(3):
        train(model, optimizer, 2, first=2 * round_)
        same.append(same_on_all_ranks(list(optimizer.center.values())))
        apart = not same_on_all_ranks(model.parameters())
    assert same == [True] * 3
    assert apart
    assert all(tensor.isfinite().all() for tensor in optimizer.center.values())


@by_dtype
@pytest.mark.parametrize("outer_momentum", [0.0, 0.7])
@pytest.mark.parametrize("averaging", ["lgrawa", "uniform"])
def test_full_pull_makes_models_bitwise_the_center(averaging: str, outer_momentum: float, dtype: torch.dtype) -> None:
    model = network(dtype)
    optimizer = averaged_sgd(model, averaging=averaging, period=3, pull=1.0, outer_momentum=outer_momentum)
    train(model, optimizer, 6)
    center = optimizer.center
    is_center = [torch.equal(parameter, center[name]) for name, parameter in model.named_parameters()]
    assert same_on_all_ranks(model.parameters())
    assert all(is_center)


def test_with_one_layer_the_three_policies_are_one() -> None:
    ends, weights = [], []
    for averaging in ("grawa", "mgrawa", "lgrawa"):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 2, bias=False)
        optimizer = averaged_sgd(model, averaging=averaging, period=2)
        train(model, optimizer, 8)
        ends.append(raw(model.parameters()))
        weights.append(optimizer.last_round.weights)
    assert all(torch.equal(end, ends[0]) for end in ends)
    assert all(torch.equal(one, weights[0]) for one in weights)
    assert weights[0].std() > 0.01


@pytest.mark.parametrize("layers", ["parameter", "module"])
@pytest.mark.parametrize("averaging", POLICIES)
def test_weights_of_each_layer_sum_to_one(averaging: str, layers: str, size: int) -> None:
    model = network()
    optimizer = averaged_sgd(model, averaging=averaging, period=2, layers=layers)
    train(model, optimizer, 4)
    weights = optimizer.last_round.weights
    assert weights.shape == (size, len(optimizer.last_round.layer_names))
    assert bool((weights > 0).all())
    assert float((weights.sum(dim=0) - 1).abs().max()) <= size * torch.finfo(weights.dtype).eps
    assert same_on_all_ranks([weights])


def mean_of_workers(parameter: Tensor) -> tuple[Tensor, Tensor]:
    """The plain mean over ranks, in float64, and that of absolute values."""
    everywhere = peers.gather(parameter.detach().double())
    return everywhere.mean(dim=0), everywhere.abs().mean(dim=0)


@by_dtype
@pytest.mark.filterwarnings("ignore:the initial parameters")
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_consensus_is_the_plain_mean_inside_and_bitwise_undone_after(
    steps: int, dtype: torch.dtype, rank: int, size: int
) -> None:
    """Rounded: each worker's share, M − 1 sums, and the result in the parameter's type: M + 1 times eps/2."""
    model = network(dtype)
    optimizer = averaged_sgd(model, period=2)
    train(model, optimizer, steps)
    if steps == 0:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * rank)
    expected = [mean_of_workers(parameter) for parameter in model.parameters()]
    own, rounding = raw(model.parameters()), (size + 1) * torch.finfo(dtype).eps
    with optimizer.consensus():
        inside = [parameter.detach().double().clone() for parameter in model.parameters()]
        changed = not torch.equal(raw(model.parameters()), own)
        same = same_on_all_ranks(model.parameters())
    assert changed
    assert same
    assert torch.equal(raw(model.parameters()), own)
    for found, (mean, magnitude) in zip(inside, expected, strict=True):
        assert bool(((found - mean).abs() <= rounding * magnitude + torch.finfo(dtype).smallest_normal).all())


@pytest.mark.fault("raises")
def test_consensus_is_undone_after_an_exception_on_one_rank(rank: int) -> None:
    model = network()
    optimizer = averaged_sgd(model, period=2)
    train(model, optimizer, 3)
    own, raised = raw(model.parameters()), False
    try:
        with optimizer.consensus():
            if rank == 0:
                raise KeyError("evaluation failed")
    except KeyError:
        raised = True
    restored = torch.equal(raw(model.parameters()), own)
    train(model, optimizer, 3, first=3)
    assert raised == (rank == 0)
    assert restored
    assert optimizer.rounds == 3


def test_consensus_leaves_no_trace_in_training() -> None:
    ends = []
    for visits in (0, 1):
        torch.manual_seed(0)
        model = network()
        optimizer = averaged_sgd(model, period=3, outer_momentum=0.5)
        for step in range(8):
            train(model, optimizer, 1, first=step)
            for _ in range(visits):
                with optimizer.consensus():
                    model(batch(step, torch.float32, peers.rank()))
        ends.append(raw([*model.parameters(), *optimizer.center.values()]))
    assert torch.equal(*ends)


# Memory. Large enough that what a layer costs does not count.
WIDTH = 1200
SLACK = 64 * 1024


def wide_network(dtype: torch.dtype) -> tuple[torch.nn.Module, int]:
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2)]).to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.001 * (1 + peers.rank()))
    return model, sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def reachable(root: object) -> Iterator[object]:
    """Everything that an object keeps alive, without what belongs to modules and classes."""
    seen: set[int] = set()
    ahead: list[object] = [root]
    while ahead:
        thing = ahead.pop()
        if id(thing) in seen or isinstance(thing, (type, types.ModuleType)):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, types.FunctionType):
            ahead += [thing.__closure__, thing.__defaults__]
        else:
            ahead += gc.get_referents(thing)
            if isinstance(thing, functools.partial):
                ahead += [thing.func, thing.args]
            if isinstance(thing, Tensor) and thing.grad is not None:
                ahead.append(thing.grad)


def bytes_held(root: object, model: torch.nn.Module) -> int:
    """Of all storages that an object keeps alive, without the model's and those of its gradients."""
    excluded = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    users = {tensor.untyped_storage().data_ptr() for tensor in excluded if tensor is not None}
    tensors = [thing for thing in reachable(root) if isinstance(thing, Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for address, size in storages.items() if address not in users)


@pytest.mark.parametrize(
    ("dtype", "outer_momentum", "models", "at_most"),
    [
        pytest.param(torch.float32, 0.0, 1, 1, id="float32"),
        # The differences from the centre, while a round lasts.
        pytest.param(torch.float32, 0.7, 2, 3, id="float32-momentum"),
        # What Horovod cannot add travels as float32, of twice the size.
        pytest.param(torch.bfloat16, 0.0, 1, 3, id="bfloat16"),
        pytest.param(torch.bfloat16, 0.7, 2, 5, id="bfloat16-momentum"),
    ],
)
def test_memory_is_one_model_and_with_outer_momentum_two(
    dtype: torch.dtype, outer_momentum: float, models: int, at_most: int, tmp_path: Path
) -> None:
    """Held after two rounds, and allocated at the worst moment of the second one.

    The profiler does not see what a backend's thread frees: a buffer handed to the backend counts from its making on.
    """
    model, model_bytes = wide_network(dtype)
    optimizer = averaged_sgd(model, period=2, outer_momentum=outer_momentum)
    torch.optim.SGD(model.parameters(), lr=0.0).step()  # what torch itself sets up at its first step
    for _ in range(2):
        optimizer.step()
    before = bytes_held(optimizer, model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in range(2):
            optimizer.step()
    held = bytes_held(optimizer, model)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    allocated = peak = before
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    assert optimizer.rounds == 2
    # Something is kept, and the walk found it.
    assert models * model_bytes <= held <= (models + 0.05) * model_bytes + SLACK
    assert models * model_bytes <= peak <= (at_most + 0.05) * model_bytes + SLACK
