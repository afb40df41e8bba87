"""Each policy that has a name, and the one that CONTRIBUTING prints: ranks come to the average of the formula."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import horovod.torch as hvd
import pytest
import torch
from models import across, mlp, set_gradients, sgd, wrap
from torch import Tensor

from grawa_hvd.averaging import POLICIES, Averaging

pytestmark = [pytest.mark.ranks(min=2), pytest.mark.usefixtures("path")]

ROOT = Path(__file__).resolve().parents[2]
PRINTED = "as printed"
# What each of the four tensors' gradients is filled with, on rank 0; on rank r it is r + 1 times that.
GRADIENTS = [0.5, 2.0, 1.0, 0.25]
EXPONENTS = {"lgrawa": -1, "mgrawa": -1, "grawa": -1, "uniform": 0, PRINTED: -1}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> type[Averaging]:
    """The policy of CONTRIBUTING's code block, run as it stands there, with a name in POLICIES as it says."""
    chapter = re.search(r"^## A policy$(.*?)^## ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
    assert chapter is not None
    block = re.search(r"^```python\n(.*?)^```$", chapter[1], re.MULTILINE | re.DOTALL)
    assert block is not None
    module = ModuleType("contributing")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block[1], "CONTRIBUTING.md", "exec"), vars(module))
    found = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    assert len(found) == 1
    policy: type[Averaging] = found[0]
    monkeypatch.setitem(POLICIES, PRINTED, policy)
    return policy


def round_of(averaging: Any, reports: bool) -> tuple[Any, list[Tensor]]:
    """One round in which all are set to the average: the optimizer, and what this rank's parameters were before."""
    model = mlp(seed=hvd.rank())
    before = [parameter.detach().double() for parameter in model.parameters()]
    optimizer = wrap(model, sgd(model, 0.0), averaging=averaging, period=1, pull=1.0)
    for parameter, value in zip(model.parameters(), GRADIENTS, strict=True):
        set_gradients([parameter], value * (hvd.rank() + 1))
    if reports:
        optimizer.report(loss=hvd.rank() + 1.0)
    optimizer.step()
    return optimizer, before


@pytest.mark.parametrize("reports", [True, False], ids=["reports", "silence"])
@pytest.mark.parametrize("averaging", EXPONENTS)
@pytest.mark.filterwarnings("ignore:the initial parameters of rank")
def test_the_average_is_that_of_the_weights_and_they_are_those_of_the_formula(
    averaging: str, reports: bool, printed: type[Averaging]
) -> None:
    """Gradients and losses of rank r are r + 1 times those of rank 0: inverse to them are 1, 1/2, 1/3, … by row."""
    if averaging == PRINTED and not reports:
        pytest.skip("nothing to go by")
    optimizer, before = round_of(averaging, reports)
    weights = torch.arange(1, hvd.size() + 1, dtype=torch.float64) ** EXPONENTS[averaging]
    weights /= weights.sum()
    expected = weights @ across(before)
    found = torch.cat([parameter.flatten() for parameter in optimizer.center.values()]).double()
    # A product, M − 1 sums and, beside the rows, a factor and a division, each rounded to float32; no |x| is above 1.
    assert float((found - expected).abs().max()) <= (hvd.size() + 3) * 2.0**-23
    # Norms of float32.
    torch.testing.assert_close(optimizer.last_round.weights, weights[:, None].expand(-1, 4), rtol=1e-6, atol=0)
