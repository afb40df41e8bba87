"""Each policy that has a name, and the one that CONTRIBUTING prints: ranks come to the average of the formula."""

from __future__ import annotations

import re
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import family
import peers
import pytest
import torch
from models import across, errors, mlp, set_gradients, sgd, train, wrap
from peers import hvd
from torch import Tensor

import grawa_hvd
from grawa_hvd.averaging import POLICIES, Averaging, Column, Observed

pytestmark = [
    pytest.mark.ranks(min=2),
    pytest.mark.filterwarnings("ignore:the initial parameters of rank"),
]

ROOT = Path(__file__).resolve().parents[2]
PRINTED = "as printed"
# What each of the four tensors' gradients is filled with, on rank 0; on rank r it is r + 1 times that.
GRADIENTS = [0.5, 2.0, 1.0, 0.25]
EXPONENTS = {"lgrawa": -1, "mgrawa": -1, "grawa": -1, "uniform": 0, PRINTED: -1}
WITHOUT_FLOOR = {name: POLICIES[name](floor=0.0) for name in ("lgrawa", "mgrawa", "grawa")}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> type[Averaging]:
    """The policy of CONTRIBUTING's code block, run as it stands there, with a name."""
    chapter = re.search(r"^## A policy$(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert chapter is not None
    block = re.search(r"^```python\n(.*?)^```$", chapter[1], re.MULTILINE | re.DOTALL)
    assert block is not None
    module = types.ModuleType("contributing")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block[1], "CONTRIBUTING.md", "exec"), vars(module))
    found = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    assert len(found) == 1
    policy: type[Averaging] = found[0]
    monkeypatch.setitem(POLICIES, PRINTED, policy)
    return policy


class Watching(Averaging):
    """Like uniform; keeps what it observed."""

    needs: ClassVar[frozenset[Column]] = frozenset()
    observed: ClassVar[list[Observed]] = []

    def scores(self, observed: Observed) -> Tensor:
        self.observed.append(observed)
        return torch.ones_like(observed.norms)


@dataclass(frozen=True)
class Holding(Watching):
    """As policies of the user's do: a function, a tensor, an object without a repr of its own."""

    by: Callable[[Tensor], Tensor] = torch.reciprocal
    held: Any = None


def round_of(averaging: Any, loss: float | None) -> tuple[Any, list[Tensor]]:
    """One round in which all are set to the average: the optimizer, and what this rank's parameters were before."""
    model = mlp(seed=peers.rank())
    before = [parameter.detach().double() for parameter in model.parameters()]
    optimizer = wrap(model, sgd(model, 0.0), averaging=averaging, period=1, pull=1.0)
    for parameter, value in zip(model.parameters(), GRADIENTS, strict=True):
        set_gradients([parameter], value * (peers.rank() + 1))
    optimizer.report(loss=loss)
    optimizer.step()
    return optimizer, before


@pytest.mark.parametrize("reports", [True, False], ids=["reports", "silence"])
@pytest.mark.parametrize("averaging", EXPONENTS)
@pytest.mark.filterwarnings("ignore:LossWeighted has a score of none")
def test_the_average_is_that_of_the_weights_and_they_are_those_of_the_formula(
    averaging: str, reports: bool, printed: type[Averaging]
) -> None:
    """Gradients and losses of rank r are r + 1 times those of rank 0: inverse to them are 1, 1/2, 1/3, … by row."""
    exponent = EXPONENTS[averaging] if reports or averaging != PRINTED else 0
    optimizer, before = round_of(WITHOUT_FLOOR.get(averaging, averaging), peers.rank() + 1.0 if reports else None)
    weights = torch.arange(1, peers.size() + 1, dtype=torch.float64) ** exponent
    weights /= weights.sum()
    expected = weights @ across(before)
    found = torch.cat([parameter.flatten() for parameter in optimizer.center.values()]).double()
    # A product and M − 1 sums, each rounded to float32; no |x| is above 1.
    assert float((found - expected).abs().max()) <= (peers.size() + 1) * 2.0**-23
    # Norms of float32.
    torch.testing.assert_close(optimizer.last_round.weights, weights[:, None].expand(-1, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("losses", "expected"), [((0.0, 1.0), (1.0, 0.0)), ((None, 1.0), (0.0, 1.0))], ids=["zero", "missing"]
)
@pytest.mark.ranks(2)
def test_a_loss_of_zero_counts_most_and_a_missing_one_not_at_all(
    losses: tuple[float | None, ...], expected: tuple[float, ...], printed: type[Averaging]
) -> None:
    optimizer, before = round_of(printed(), losses[peers.rank()])
    leader = across(before)[expected.index(1.0)].float()
    assert optimizer.last_round.weights[:, 0].tolist() == list(expected)
    assert torch.equal(torch.cat([parameter.flatten() for parameter in optimizer.center.values()]), leader)


def test_where_nobody_has_reported_a_warning_names_the_policy_and_what_to_call(printed: type[Averaging]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        round_of(printed(), None)
    told = [str(warning.message) for warning in caught if "LossWeighted" in str(warning.message)]
    assert len(told) == 1
    assert f"a score of none of the {peers.size()} workers" in told[0] and "optimizer.report()" in told[0]


@pytest.mark.fault("raises")
def test_a_negative_score_is_an_error_on_every_rank(printed: type[Averaging]) -> None:
    found = errors(lambda: round_of(printed(), -0.5 if peers.rank() else 1.0))
    assert {name for name, _ in found} == {"ValueError"}
    assert all("LossWeighted.scores must be at least 0, but -0.5 is one" in text for _, text in found)


@pytest.mark.horovod
@pytest.mark.fault("data")
def test_of_a_worker_that_has_joined_a_policy_and_the_report_know_nothing() -> None:
    Watching.observed.clear()
    model = mlp()
    optimizer = wrap(model, averaging=Watching(), period=2)
    last = peers.size() - 1
    for step in range(2 if peers.rank() == last else 4):
        optimizer.report(loss=1.0, accuracy=0.5, samples=8)
        train(model, optimizer, [step])
    hvd.join()
    if peers.rank() < last:
        assert optimizer.last_round.losses.isnan().tolist() == [False] * last + [True]
    for number, observed in enumerate(Watching.observed):
        for values in (observed.losses, observed.accuracies, observed.samples, observed.norms[:, 0]):
            assert values.isnan().tolist() == [False] * last + [number == 1]


@pytest.mark.fault("differ")
def test_what_a_policy_holds_is_compared_and_not_where_it_lies() -> None:
    alike = Holding(by=lambda loss: 1 / loss, held=[torch.eye(3), types.SimpleNamespace(), object()])
    other = Holding(held=torch.full((2,), float(peers.rank())))
    assert errors(lambda: round_of(alike, None)) == [("", "")] * peers.size()
    found = errors(lambda: round_of(other, None))
    assert {name for name, _ in found} == {"ValueError"}
    assert all("averaging=Holding(" in text and "on rank 0" in text for _, text in found)


@pytest.mark.ranks(4)
@pytest.mark.parametrize("name", family.CASES)
def test_a_policy_does_what_its_paper_says(name: str) -> None:
    case = family.CASES[name]
    found = family.train(case, peers.rank(), grawa_hvd.DistributedGrawaOptimizer)
    family.check(case, peers.rank(), peers.size(), found)
