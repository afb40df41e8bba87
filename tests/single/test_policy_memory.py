"""What policies remember: over which rounds, and of which layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


@pytest.mark.filterwarnings("ignore:the initial parameters of rank")
def test_where_all_are_on_one_host_its_leader_forgets_earlier_rounds_too() -> None:
    """Worker 0 was far ahead before the round of all; worker 1 is ahead since."""

    def work(transport: LocalTransport) -> float:
        model = torch.nn.ParameterList([torch.full((2,), float(transport.rank))])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0), model.named_parameters(), process_group=transport,
            averaging="lsgd", period=4, local_period=3, pull=0.5, proximity=0.0,
        )  # fmt: skip
        for step in range(7):
            model[0].grad = torch.ones(2)
            optimizer.report(loss=9.0 * transport.rank if step < 4 else 1.0 - transport.rank)
            optimizer.step()
        return model[0][0].item()

    # Worker 0 leads in steps 3 and 4: 1 → 0.5 → 0.25. Worker 1 leads in step 7 (a host's third): 0 → 0.125.
    assert run_workers(2, work, hosts=["a", "a"]) == [0.125, 0.25]


def test_edit_remembers_of_a_layer_what_was_in_rounds_of_its_fragment() -> None:
    """Each round of 6 but the layer's first, when there was no centre."""

    def work(transport: LocalTransport) -> Tensor:
        model = torch.nn.ParameterList([torch.zeros(3), torch.zeros(3)])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), process_group=transport,
            averaging="edit", period=4, fragments=2, pull=1.0, proximity=0.0,
        )  # fmt: skip
        for _ in range(24):
            for parameter in model:
                parameter.grad = torch.full((3,), 1.0 + transport.rank)
            optimizer.step()
        memory: Tensor = optimizer.state_dict()["grawa"]["policy"]
        return memory

    mean, variance, rounds = run_workers(2, work)[0]
    way = 4 * math.sqrt(3) * torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(mean, way, rtol=1e-5, atol=0)  # parameters are float32
    assert (rounds == 5).all() and (variance < 1e-8).all()


@pytest.mark.parametrize("averaging", ["lsgd", "edit"])
def test_what_a_policy_remembers_of_other_workers_is_not_taken_over(averaging: str) -> None:
    """From the checkpoint of 3 workers, 2 go on with a memory of their own."""

    def work(transport: LocalTransport, state: dict[str, Any] | None = None) -> dict[str, Any]:
        model = torch.nn.ParameterList([torch.zeros(3)])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), process_group=transport, period=2,
            averaging=averaging,
        )  # fmt: skip
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(6):
            model[0].grad = torch.full((3,), 1.0 + transport.rank)
            optimizer.report(loss=1.0)
            optimizer.step()
        return optimizer.state_dict()

    saved = run_workers(3, work)[0]
    for state in run_workers(2, lambda transport: work(transport, saved)):
        assert state["grawa"]["policy"].size(1) == 2
        assert (state["grawa"]["policy"][-1] > 0).all()
