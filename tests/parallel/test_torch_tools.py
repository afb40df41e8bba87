"""torch's own tools around the optimizer: Join for uneven data, checkpoints, DistributedDataParallel, shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
import torch.distributed as dist
from models import across, copies, equal_on_all_ranks, errors, from_all, mlp, same, sgd, train, wrap
from torch import nn
from torch.distributed.algorithms.join import Join, Joinable
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.parallel import DistributedDataParallel

import grawa_hvd

pytestmark = [pytest.mark.torch_distributed, pytest.mark.ranks(min=2)]

KINDS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": sgd,
    "momentum": lambda model: sgd(model, 0.05, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02),
}
UNEVEN: dict[str, dict[str, Any]] = {
    "lgrawa": {},
    "uniform": {"averaging": "uniform"},
    "outer momentum": {"outer_momentum": 0.5},
    "overlap": {"period": 3, "overlap": 1},
    "fragments": {"period": 4, "fragments": 2},
    "bf16": {"compression": grawa_hvd.Compression.bf16},
}


@pytest.mark.parametrize("options", UNEVEN.values(), ids=UNEVEN)
@pytest.mark.fault("data")
def test_ranks_with_less_data_join_and_follow(options: dict[str, Any], rank: int, size: int) -> None:
    """The rounds of the others go on with zeros from those who have joined, whose centre moves with theirs."""
    model = mlp()
    optimizer = wrap(model, **options)
    assert isinstance(optimizer, Joinable)
    for epoch in range(3):
        with Join([optimizer]):
            train(model, optimizer, range(20 * epoch, 20 * epoch + 5 + 2 * rank))
        with optimizer.consensus():  # which finishes what is under way
            assert equal_on_all_ranks(model)
        assert len(set(from_all(optimizer.rounds))) == 1
        assert equal_on_all_ranks(optimizer.center.values())
    assert optimizer.rounds >= 4


@pytest.mark.fault("data")
def test_a_worker_that_has_joined_keeps_its_model_and_has_no_weight(rank: int, size: int) -> None:
    model = mlp()
    optimizer = wrap(model, averaging="uniform", pull=1.0)
    last = size - 1
    with Join([optimizer]):
        train(model, optimizer, range(2 if rank == last else 4))
        kept = copies(model)
    assert same(copies(model), kept)
    if rank < last:
        weights = optimizer.last_round.weights[:, 0].tolist()
        assert weights == pytest.approx([1 / last] * last + [0.0], abs=1e-12)
    # Those who went on are at their mean; the one that left is where all were.
    rows = across(model)
    assert torch.equal(rows[:last], rows[:1].expand(last, -1))
    assert not torch.equal(rows[last], rows[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on", ["all ranks", "rank 0 alone"])
def test_torchs_checkpoint_tools_count_no_step_and_keep_our_state(kind: str, on: str, rank: int) -> None:
    def new() -> tuple[nn.Module, Any]:
        model = mlp()
        return model, wrap(model, KINDS[kind](model), outer_momentum=0.5)

    model, optimizer = new()
    if on == "all ranks" or rank == 0:
        get_optimizer_state_dict(model, optimizer)  # before the first step
    train(model, optimizer, range(1))
    assert optimizer.rounds == 0
    train(model, optimizer, range(1, 5))
    file, parameters = io.BytesIO(), copies(model)
    torch.save(get_optimizer_state_dict(model, optimizer), file)
    file.seek(0)
    train(model, optimizer, range(5, 9))

    again, resumed = new()
    for parameter, saved in zip(again.parameters(), parameters, strict=True):
        parameter.data.copy_(saved)
    set_optimizer_state_dict(again, resumed, torch.load(file, weights_only=True))
    assert resumed.rounds == 2
    assert all("grawa" not in group for group in resumed.param_groups)
    train(again, resumed, range(5, 9))
    # A sum of more than two workers is made in the same order again.
    assert same(copies(model), copies(again))


def test_ddp_over_the_same_ranks_is_refused_and_within_a_host_is_not(rank: int, size: int) -> None:
    model = mlp()
    replicas = [DistributedDataParallel(model)]
    optimizer = wrap(model)
    found = errors(lambda: train(replicas[0], optimizer, range(1)))
    assert [name for name, _ in found] == ["ValueError"] * size
    assert all("DistributedDataParallel reduces the gradients of this model over ranks 0" in text for _, text in found)
    replicas.clear()
    # A group of this rank alone stands for a host.
    alone = [dist.new_group([other]) for other in range(size)][rank]
    within = DistributedDataParallel(mlp(), process_group=alone)
    optimizer = wrap(within.module)
    train(within, optimizer, range(4))
    assert optimizer.rounds == 2
    assert equal_on_all_ranks(optimizer.center.values())


def test_sharded_parameters_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415
    from torch.distributed.tensor import Shard, distribute_tensor  # noqa: PLC0415

    mesh = init_device_mesh("cpu", (peers.size(),))
    sharded = nn.Parameter(distribute_tensor(torch.zeros(4, 2), mesh, [Shard(0)]))
    with pytest.raises(ValueError, match="weight is sharded over processes"):
        grawa_hvd.DistributedGrawaOptimizer(torch.optim.SGD([sharded], lr=0.1), [("weight", sharded)])
