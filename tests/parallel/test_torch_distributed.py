"""Groups and meshes of torch.distributed: who averages with whom there, and who is on which host."""

from __future__ import annotations

import warnings
from typing import Any

import peers
import pytest
import torch
import torch.distributed as dist
from models import across, copies, equal_on_all_ranks, errors, from_all, mlp, same, sgd, train, wrap
from torch.distributed.device_mesh import init_device_mesh

import grawa_hvd

pytestmark = [pytest.mark.torch_distributed, pytest.mark.ranks(min=2)]


def trained(**options: Any) -> tuple[torch.nn.Module, Any]:
    """Seven steps, of which every second starts a round; no worker is at the centre after them."""
    model = mlp()
    optimizer = wrap(model, sgd(model, momentum=0.9), **options)
    train(model, optimizer, range(7))
    return model, optimizer


@pytest.mark.parametrize("named", ["group", "mesh"])
def test_all_ranks_by_name_are_the_default_group(named: str, size: int) -> None:
    model, optimizer = trained()
    named_one = {"process_group": dist.group.WORLD} if named == "group" else {"device_mesh": everyone()}
    again, other = trained(**named_one)
    assert optimizer.rounds == other.rounds == 3
    assert other.last_round.weights.shape == (size, 4)
    assert same(copies(model), copies(again))
    assert same(optimizer.center.values(), other.center.values())
    assert equal_on_all_ranks(other.center.values())
    assert not equal_on_all_ranks(again)


def everyone() -> Any:
    return init_device_mesh("cpu", (peers.size(),))


def square() -> Any:
    """Four ranks: 0 and 2 hold copies of one shard, 1 and 3 of the other."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


@pytest.mark.ranks(4)
def test_workers_average_over_one_dimension_of_a_mesh() -> None:
    model, optimizer = trained(device_mesh=square()["replicate"], period=7, pull=1.0)
    rows = across(model)
    assert optimizer.last_round.weights.shape == (2, 4)
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[1], rows[3])
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.ranks(4)
def test_a_mesh_of_two_dimensions_is_refused_with_what_to_write_instead() -> None:
    mesh = square()
    found = errors(lambda: wrap(mlp(), device_mesh=mesh))
    assert [kind for kind, _ in found] == ["ValueError"] * 4
    assert all("must have one dimension, but has 2" in text and 'mesh["replicate"]' in text for _, text in found)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("odd", [[1, 3], [3, 1]], ids=str)
def test_a_group_is_a_group_in_whatever_order_it_is_named(odd: list[int], rank: int) -> None:
    group = dist.new_group(odd, timeout=peers.TORCH_TIMEOUT)
    _, optimizer = trained(process_group=group)
    centers = from_all([tensor.clone() for tensor in (optimizer.center or {}).values()])
    assert [len(center) for center in centers] == [0, 4, 0, 4]
    assert same(centers[1], centers[3])
    assert optimizer.rounds == (3 if rank in odd else 0)


@pytest.mark.ranks(4)
def test_a_rank_outside_a_group_enters_the_consensus_alone(rank: int) -> None:
    group = dist.new_group([0, 1], timeout=peers.TORCH_TIMEOUT)
    model, optimizer = trained(process_group=group)
    own = copies(model)
    with optimizer.consensus():
        moved = not same(own, model.parameters())
        rows = across(model)
    assert moved == (rank < 2)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2]) and not torch.equal(rows[2], rows[3])


def within_host(model: torch.nn.Module, **options: Any) -> list[Any]:
    """Of every rank: the shapes of the weights of its rounds, those within its host first."""
    reports: list[Any] = []
    train(model, wrap(model, period=4, local_period=2, on_round=reports.append, **options), range(4))
    return from_all([tuple(report.weights.shape) for report in reports])


def test_ranks_that_one_agent_started_are_on_one_host(size: int) -> None:
    assert within_host(mlp()) == [[(size, 4), (size, 4)]] * size


def test_ranks_of_two_agents_on_one_machine_are_on_two_hosts(
    monkeypatch: pytest.MonkeyPatch, rank: int, size: int
) -> None:
    """Rank 0 is alone on its host and has no round there."""
    monkeypatch.setenv("GROUP_RANK", str(min(rank, 1)))
    found = within_host(mlp())
    assert found[0] == [(size, 4)]
    assert found[1:] == [[*([(size - 1, 4)] if size > 2 else []), (size, 4)]] * (size - 1)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("members", [[1, 2, 3], [0, 1, 3]], ids=str)
def test_hosts_of_a_group_that_has_not_all_ranks_are_refused(members: list[int], rank: int) -> None:
    """torch makes groups with all processes, and those outside of the group do not come to its rounds."""
    group = dist.new_group(members, timeout=peers.TORCH_TIMEOUT)
    found = errors(lambda: within_host_alone(group))
    expected = ("ValueError", "local_period needs all 4 processes of torch.distributed in one group of workers, but "
                "process_group has 3 of them")  # fmt: skip
    assert found == [expected if other in members else ("", "") for other in range(4)]


def within_host_alone(group: Any) -> None:
    wrap(mlp(), period=4, local_period=2, process_group=group)


@pytest.mark.ranks(4)
def test_hosts_of_a_group_with_an_order_of_its_own_weigh_each_worker_by_its_own_row(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """torch sorts the ranks of the groups that are made for the hosts. Weights are inverse to gradients 1 + r."""
    monkeypatch.setenv("GROUP_RANK", str(rank // 2))
    group = dist.new_group([3, 2, 1, 0], sort_ranks=False, timeout=peers.TORCH_TIMEOUT)
    parameter = torch.nn.Parameter(torch.tensor([float(rank)]))
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD([parameter], lr=0.0), [("x", parameter)], process_group=group, period=4, local_period=1,
        pull=1.0, proximity=0.0, averaging=grawa_hvd.LGRAWA(floor=0.0),
    )  # fmt: skip
    parameter.grad = torch.tensor([1.0 + rank])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the initial parameters")
        optimizer.step()
    pair = [0, 1] if rank < 2 else [2, 3]
    weights = [1 / (1 + r) for r in pair]
    expected = sum(w * r for w, r in zip(weights, pair, strict=True)) / sum(weights)
    # A handful of float32 roundings of numbers up to 3.
    assert from_all(abs(parameter.item() - expected) < 8 * 3 * 2.0**-24) == [True] * 4
