"""Averaging is not told to autograd: what runs beside the bare optimizer runs beside rounds, pulls and looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


def run(transport: LocalTransport, kind: Any, options: dict[str, Any]) -> int:
    """Two losses first; then the backward of each, and a step after it, with rounds in between. Returns the rounds."""
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2))
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        kind(model.parameters(), lr=0.01), model.named_parameters(), process_group=transport,
        **{"averaging": "lgrawa", "period": 3, "proximity": 0.1, **options},
    )  # fmt: skip
    for step in range(6):
        losses = [part(torch.ones(2, 3)).square().sum() for part in model]
        for loss in losses:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step == 4:
                with optimizer.consensus():
                    pass
    return optimizer.rounds


@pytest.mark.parametrize("options", [{}, {"proximity": 0.0}, {"overlap": 1}, {"averaging": "uniform"}], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam], ids=["fused", "by torch"])
def test_a_second_backward_runs_after_a_step_that_left_its_part_alone(kind: Any, options: dict[str, Any]) -> None:
    assert run_workers(2, lambda transport: run(transport, kind, options)) == [4 - options.get("overlap", 0)] * 2


def test_what_the_step_itself_has_changed_is_told() -> None:
    def work(transport: LocalTransport) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.01), model.named_parameters(), process_group=transport
        )
        losses = [model(torch.ones(2, 3)).square().sum() for _ in range(2)]
        losses[0].backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            losses[1].backward()

    run_workers(2, work)
