"""The launcher: as many distinct ranks as asked for, and exchanges that add up."""

from __future__ import annotations

import importlib

import peers
import pytest
import torch
import torch.distributed as dist
from peers import hvd


def test_world_has_the_size_that_was_launched(size: int) -> None:
    assert size == (hvd.size() if peers.TRANSPORT == "horovod" else dist.get_world_size())


def test_ranks_are_distinct(rank: int, size: int) -> None:
    assert rank == (hvd.rank() if peers.TRANSPORT == "horovod" else dist.get_rank())
    assert peers.gather(torch.tensor(rank)).tolist() == peers.gather_objects(rank) == list(range(size))


def test_sums_are_over_ranks(rank: int, size: int) -> None:
    total = peers.sum_(torch.full((3,), float(rank + 1)))
    assert total.tolist() == [size * (size + 1) / 2] * 3


@pytest.mark.ranks(min=2)
def test_seeds_are_alike_on_all_ranks(size: int) -> None:
    drawn = peers.gather(torch.rand(4))
    assert torch.equal(drawn, drawn[:1].expand(size, 4))


@pytest.mark.ranks(min=2)
def test_a_broadcast_is_of_rank_0(rank: int) -> None:
    model = torch.nn.BatchNorm1d(3)
    for tensor in model.state_dict().values():
        tensor.fill_(rank + 1)
    peers.broadcast(model)
    assert {float(value) for tensor in model.state_dict().values() for value in tensor.flatten()} == {1.0}


@pytest.mark.torch_distributed
def test_over_torch_nobody_can_use_horovod() -> None:
    with pytest.raises(ImportError):
        importlib.import_module("horovod.torch")


@pytest.mark.horovod
@pytest.mark.ranks(4)
def test_process_sets_can_be_made_at_run_time(rank: int) -> None:
    evens, odds = hvd.add_process_set([0, 2]), hvd.add_process_set([1, 3])
    mine = evens if rank % 2 == 0 else odds
    total = hvd.allreduce(torch.tensor([float(rank)]), op=hvd.Sum, name="set", process_set=mine)
    assert total.item() == (2 if rank % 2 == 0 else 4)
    hvd.remove_process_set(evens)
    hvd.remove_process_set(odds)
