"""A look at the model inside `torch.inference_mode()` leaves nothing behind that cannot be written to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers

OPTIONS = [
    {}, {"averaging": "uniform", "outer_momentum": 0.5}, {"overlap": 1}, {"fragments": 2},
    {"compression": grawa_hvd.Compression.bf16}, {"layers": "module"},
]  # fmt: skip


def run(transport: LocalTransport, kind: Any, options: dict[str, Any], looks: bool, unfreezes: bool) -> list[Tensor]:
    """The parameters after ten steps, with looks before the first and between others, or without any."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for parameter, start in zip(model.parameters(), (0.5, 0.1, -0.5, 0.2), strict=True):
        nn.init.constant_(parameter, start)
    model[0].requires_grad_(not unfreezes)
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        kind(model.parameters(), lr=0.01), model.named_parameters(), process_group=transport,
        **{"averaging": "lgrawa", "period": 3, "proximity": 0.1, "buffers": model, **options},
    )  # fmt: skip
    for step in range(10):
        model[0].requires_grad_(step >= 5 or not unfreezes)
        if looks and step in (0, 2, 5, 8):
            with torch.inference_mode():
                with optimizer.consensus():
                    model(torch.ones(2, 3))
                optimizer.report(loss=model(torch.ones(2, 3)).mean())
                optimizer.state_dict()
        optimizer.zero_grad()
        model(torch.full((2, 3), 1.0 + transport.rank)).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
def test_training_goes_on_after_a_look_as_without_it(kind: Any, options: dict[str, Any]) -> None:
    looked, blind = [
        run_workers(2, lambda transport, looks=looks: run(transport, kind, options, looks, unfreezes=False))
        for looks in (True, False)
    ]
    if "overlap" not in options:  # a look finishes a round that is under way sooner
        assert all(torch.equal(x, y) for a, b in zip(looked, blind, strict=True) for x, y in zip(a, b, strict=True))


def test_a_look_may_lay_the_model_out_anew() -> None:
    run_workers(2, lambda transport: run(transport, torch.optim.SGD, {}, looks=True, unfreezes=True))
