"""The messages of a round: however the model is cut into buckets, the centre is the same."""

from __future__ import annotations

from typing import Any

import peers
import pytest
import torch
from models import equal_on_all_ranks, from_all, same, sgd, wrap
from torch import Tensor, nn

import grawa_hvd
import grawa_hvd.model.cut
from grawa_hvd.rounds.exchange import Exchange
from grawa_hvd.rounds.pull import Puller
from grawa_hvd.rounds.rows import BEFORE_COLUMNS

pytestmark = pytest.mark.ranks(2)


def deep() -> nn.Sequential:
    """Eight tensors: 80 + 16, 256 + 16, 256 + 16, 32 + 2 numbers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2)
    )


def batch_loss(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + peers.rank())
    return model(torch.randn(8, 5, generator=generator)).square().mean()


def run(steps: int = 12, groups: Any = None, **options: Any) -> tuple[list[Tensor], list[Any], Any]:
    """The centre after some rounds, their reports, and the optimizer."""
    model, reports = deep(), []
    if isinstance(groups, list):
        owned = list(model.parameters())
        groups = [[owned[index] for index in group] for group in groups]
    optimizer = wrap(model, sgd(model, 0.05), **{"period": 4, "groups": groups, "on_round": reports.append, **options})
    for step in range(steps):
        optimizer.zero_grad()
        batch_loss(model, step).backward()
        optimizer.step()
    return [tensor.clone() for tensor in optimizer.center.values()], reports, optimizer


CUTS = {"3": 3, "8": 8, "lists": [[7, 0], [3], [2, 4]]}
ROUNDS_OF = {"plain": {}, "outer": {"outer_momentum": 0.6}, "overlap": {"overlap": 2, "outer_momentum": 0.6}}


@pytest.mark.parametrize("options", ROUNDS_OF.values(), ids=ROUNDS_OF)
def test_the_centre_does_not_depend_on_how_the_model_is_cut(options: dict[str, Any]) -> None:
    """Of two ranks' numbers there is one sum, whatever lies beside them: bitwise the same."""
    whole, _, optimizer = run(groups=1, **options)
    assert len(optimizer._worker.member.model.layout.buckets) == 1
    for groups in CUTS.values():
        cut, _, optimizer = run(groups=groups, **options)
        assert len(optimizer._worker.member.model.layout.buckets) > 2
        assert same(whole, cut)
        assert equal_on_all_ranks(cut)


@pytest.mark.parametrize("options", ROUNDS_OF.values(), ids=ROUNDS_OF)
def test_buckets_by_size_hold_all_parameters_once_in_order(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, reports, _ = run(**options)
    monkeypatch.setattr(grawa_hvd.model.cut, "BUCKET_BYTES", 700)
    cut, told, optimizer = run(**options)
    buckets = optimizer._worker.member.model.layout.buckets
    assert len(buckets) > 2
    assert [index for bucket in buckets for index in bucket.members] == list(range(8))
    assert same(whole, cut)
    assert [report.bytes for report in told] == [report.bytes for report in reports]


@pytest.mark.parametrize("compression", [grawa_hvd.Compression.none, grawa_hvd.Compression.fp16])
def test_the_bytes_of_all_buckets_are_those_of_the_model(compression: Any) -> None:
    _, reports, _ = run(groups=3, compression=compression)
    elements = sum(parameter.numel() for parameter in deep().parameters())
    row = peers.size() * 8 * (BEFORE_COLUMNS + 8)
    later = 2 if compression is grawa_hvd.Compression.fp16 else 4
    assert [report.bytes for report in reports] == [row + 4 * elements, row + later * elements, row + later * elements]


def test_a_centre_that_travels_in_halves_hardly_depends_on_how_the_model_is_cut() -> None:
    """One scale serves all buckets, so that a number is rounded alike wherever it lies: bitwise the same."""
    whole, _, _ = run(groups=1, compression=grawa_hvd.Compression.fp16)
    cut, _, _ = run(groups=3, compression=grawa_hvd.Compression.fp16)
    assert same(whole, cut)


def test_every_bucket_is_under_way_before_the_first_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they are blended in the order in which they were sent."""
    events: list[tuple[str, int]] = []
    start, pull = Exchange.start, Puller.pull_bucket_

    def noted_start(self: Exchange, number: int, *arguments: Any, **options: Any) -> Any:
        events.append(("start", number))
        return start(self, number, *arguments, **options)

    def noted_pull(self: Puller, number: int, *arguments: Any) -> None:
        events.append(("pull", number))
        pull(self, number, *arguments)

    monkeypatch.setattr(Exchange, "start", noted_start)
    monkeypatch.setattr(Puller, "pull_bucket_", noted_pull)
    run(steps=4, groups=3)
    assert from_all(events) == [[(what, n) for what in ("start", "pull") for n in range(3)]] * peers.size()


@pytest.mark.fault("differ")
def test_ranks_that_cut_differently_are_told_so(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if rank == 1:
        monkeypatch.setattr(grawa_hvd.model.cut, "BUCKET_BYTES", 700)
    with pytest.raises(ValueError, match="bucket"):
        run(steps=1)
