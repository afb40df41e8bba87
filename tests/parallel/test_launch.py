"""The launcher: as many distinct ranks as asked for, and collectives that add up."""

from __future__ import annotations

import os

import horovod.torch as hvd
import pytest
import torch


def test_world_has_the_size_that_was_launched(size: int) -> None:
    assert size == int(os.environ.get("HOROVOD_SIZE", "1"))


def test_ranks_are_distinct(rank: int, size: int) -> None:
    assert hvd.allgather(torch.tensor([rank]), name="rank").tolist() == list(range(size))


def test_allreduce_sums_over_ranks(rank: int, size: int) -> None:
    total = hvd.allreduce(torch.full((3,), float(rank + 1)), op=hvd.Sum, name="sum")
    assert total.tolist() == [size * (size + 1) / 2] * 3


@pytest.mark.ranks(min=2)
def test_seeds_are_alike_on_all_ranks(size: int) -> None:
    drawn = hvd.allgather(torch.rand(1, 4), name="drawn")
    assert torch.equal(drawn, drawn[:1].expand(size, 4))


@pytest.mark.ranks(4)
def test_process_sets_can_be_made_at_run_time(rank: int) -> None:
    evens, odds = hvd.add_process_set([0, 2]), hvd.add_process_set([1, 3])
    mine = evens if rank % 2 == 0 else odds
    total = hvd.allreduce(torch.tensor([float(rank)]), op=hvd.Sum, name="set", process_set=mine)
    assert total.item() == (2 if rank % 2 == 0 else 4)
    hvd.remove_process_set(evens)
    hvd.remove_process_set(odds)
