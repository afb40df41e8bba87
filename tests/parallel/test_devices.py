"""Models that no kernel and no sum can take, since their parameters are in several places: refused on every rank."""

from __future__ import annotations

import pytest
import torch
from models import errors, mlp, set_gradients, train, wrap
from torch import nn

pytestmark = pytest.mark.ranks(2)

SEVERAL = "all parameters that a worker averages must be on one device, but are on cpu and meta"
WITHOUT_DATA = "the parameters that a worker averages must have data, but are on the device meta"
DIFFERS = pytest.mark.fault("differ")
DIFFER = "the workers' models or settings differ, first in: "


def placed(place: str) -> nn.Sequential:
    """A model on the CPU, wholly or in part on the device that every torch has besides."""
    model = mlp()
    parts = {"cpu": [], "first on meta": [model[0]], "last on meta": [model[2]], "meta": [model]}
    for part in parts[place]:
        part.to("meta")
    return model


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (("last on meta", "last on meta"), SEVERAL),
        (("first on meta", "last on meta"), SEVERAL),
        (("meta", "meta"), WITHOUT_DATA),
        pytest.param(
            ("cpu", "last on meta"), f"{DIFFER}'parameters on cpu' on rank 0; '{SEVERAL}' on rank 1", marks=DIFFERS
        ),
        pytest.param(
            ("first on meta", "cpu"), f"{DIFFER}'{SEVERAL}' on rank 0; 'parameters on cpu' on rank 1", marks=DIFFERS
        ),
        pytest.param(
            ("meta", "cpu"), f"{DIFFER}'{WITHOUT_DATA}' on rank 0; 'parameters on cpu' on rank 1", marks=DIFFERS
        ),
    ],
    ids=str,
)
def test_a_model_in_several_places_is_refused_with_the_reason_on_every_rank(
    places: tuple[str, str], message: str, rank: int
) -> None:
    model = placed(places[rank])
    optimizer = wrap(model)
    set_gradients(model.parameters(), 1.0)
    assert errors(optimizer.step) == [("ValueError", message)] * 2


@pytest.mark.fault("differ")
def test_a_part_that_comes_in_mid_run_is_refused_by_those_who_wait_for_a_round(rank: int) -> None:
    model = mlp()
    optimizer = wrap(model)
    train(model, optimizer, range(3))
    more = nn.Parameter(torch.ones(2, device="cpu" if rank == 0 else "meta"))
    optimizer.add_param_group({"params": [more]})
    message = f"{DIFFER}'parameters on cpu' on rank 0; '{SEVERAL}' on rank 1"
    assert errors(lambda: train(model, optimizer, [3])) == [("ValueError", message)] * 2


def test_what_is_frozen_may_be_elsewhere() -> None:
    model = mlp()
    elsewhere = nn.Parameter(torch.ones(2, device="meta"), requires_grad=False)
    model.register_parameter("elsewhere", elsewhere)
    optimizer = wrap(model)
    train(model, optimizer, range(4))
    assert optimizer.rounds == 2
