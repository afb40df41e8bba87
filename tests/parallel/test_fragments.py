"""A model averaged in parts, each with a round of its own in every cycle."""

from __future__ import annotations

from typing import Any

import peers
import pytest
import torch
from learner import compare, too_large
from models import across, continued, equal_on_all_ranks, errors, mlp, sgd, train, wrap
from simulation import Scheme

from grawa_hvd.rounds.rows import BEFORE_COLUMNS

pytestmark = pytest.mark.ranks(2)

# Of the 83 numbers of the network the layers hold 48, 8, 24 and 3.
TWO, THREE, FOUR = (0, 1, 1, 1), (0, 1, 2, 2), (0, 1, 2, 3)
SCHEMES = {
    "2": Scheme(fragment_of=TWO, proximity=0.3),
    "3-of-5": Scheme("grawa", period=5, fragment_of=THREE, proximity=0.3, pull=0.3),
    "4-of-4-outer": Scheme("mgrawa", fragment_of=FOUR, proximity=0.3, outer_momentum=0.7),
    "3-fresh-outer": Scheme("grawa", "fresh", fragment_of=THREE, proximity=0.3, outer_momentum=0.5),
    "2-overlap-1": Scheme(fragment_of=TWO, overlap=1, proximity=0.3, outer_momentum=0.5),
    "3-of-7-overlap-6": Scheme("lgrawa", period=7, fragment_of=THREE, overlap=6, proximity=0.3),
    "2-overlap-3-fresh": Scheme("lgrawa", "fresh", fragment_of=TWO, overlap=3, proximity=0.3, outer_momentum=0.5),
    "2-overlap-2-uniform": Scheme("uniform", fragment_of=TWO, overlap=2, proximity=0.3),
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_fragments_follow_the_formulas(scheme: Scheme) -> None:
    assert not too_large(compare(scheme, steps=21))


def test_fragments_of_modules_follow_the_formulas() -> None:
    scheme = Scheme("mgrawa", fragment_of=(0, 1), proximity=0.3)
    assert not too_large(compare(scheme, layer_of=[0, 0, 1, 1], steps=20, layers="module"))


def test_a_round_sends_and_tells_of_its_fragment_alone() -> None:
    """A row holds a norm for each layer of the model, float64; of the model the fragment's elements travel."""
    model, reports = mlp(), []
    train(model, wrap(model, period=4, fragments=2, on_round=reports.append), range(8))
    size = peers.size()
    assert [report.step for report in reports] == [2, 4, 6, 8]
    names = [report.layer_names for report in reports]
    assert names[:2] == names[2:]
    assert names[0] + names[1] == [name for name, _ in model.named_parameters()]
    elements = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for report in reports:
        assert report.bytes == size * 8 * (BEFORE_COLUMNS + 4) + 4 * sum(elements[name] for name in report.layer_names)
        assert report.weights.shape == report.scores.shape == (size, len(report.layer_names))


def test_a_checkpoint_in_the_middle_of_a_cycle_continues_bitwise() -> None:
    # After 3 steps one fragment has a centre.
    assert continued({"period": 6, "fragments": 3, "proximity": 0.5, "outer_momentum": 0.4}, before=3, after=12)


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
@pytest.mark.fault("diverged")
def test_a_rank_that_diverged_comes_back_whole(averaging: str, overlap: int, rank: int) -> None:
    """Its next round sets every part of it that has a centre: parts left at NaN would poison the others again."""
    model = mlp()
    optimizer = wrap(model, sgd(model, 0.05, momentum=0.9), period=4, fragments=2, overlap=overlap, averaging=averaging)
    train(model, optimizer, range(9))
    if rank == 0:
        model[0].weight.data[0, 0] = torch.nan
    train(model, optimizer, range(9, 19))
    assert bool(across(model).isfinite().all())
    assert bool((optimizer.last_round.weights > 0).all())
    assert equal_on_all_ranks(optimizer.center.values())


@pytest.mark.parametrize(("fragments", "allowed"), [(0, "from 1 to 4"), (5, "from 1 to 4"), (True, "from 1 to 4")])
def test_fragments_out_of_range_are_refused_on_every_rank(fragments: Any, allowed: str) -> None:
    found = errors(lambda: wrap(mlp(), period=4, fragments=fragments))
    assert [kind for kind, _ in found] == ["ValueError"] * peers.size()
    assert all(f"fragments must be an integer {allowed}, but is {fragments!r}" in text for _, text in found)


def test_more_fragments_than_layers_are_refused_on_every_rank() -> None:
    model = mlp()
    found = errors(lambda: train(model, wrap(model, period=8, fragments=5), range(1)))
    assert [kind for kind, _ in found] == ["ValueError"] * peers.size()
    assert all("fragments must be at most the number of layers, 4, but is 5" in text for _, text in found)
