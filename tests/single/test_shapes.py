"""Parameters that change their shape in mid-training, as in pruning: the layer is averaged in its new one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from workers import Learner, learn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class Plain(torch.optim.SGD):
    """Stepped by torch, since it is not exactly SGD."""


def prune_rows(model: nn.Sequential) -> None:
    model[1].weight.data, model[1].bias.data = model[1].weight.data[:1].clone(), model[1].bias.data[:1].clone()


def prune_columns(model: nn.Sequential) -> None:
    model[1].weight.data = model[1].weight.data[:, :3].clone()
    model[0].weight.data, model[0].bias.data = model[0].weight.data[:3].clone(), model[0].bias.data[:3].clone()


def grow(model: nn.Sequential) -> None:
    model[1].weight.data = torch.cat([model[1].weight.data, torch.zeros(2, 4)])
    model[1].bias.data = torch.cat([model[1].bias.data, torch.zeros(2)])


def run(transport: LocalTransport, change: Callable[[nn.Sequential], None], after: int, options: dict[str, Any]) -> Any:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    options = {"averaging": "lgrawa", "period": 3, "pull": 1.0, **options}
    kind = options.pop("kind", torch.optim.SGD)
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        kind(model.parameters(), lr=0.01), model.named_parameters(), process_group=transport, **options
    )
    for step in range(9):
        if step == after:
            change(model)
            optimizer.zero_grad()
            optimizer.state_dict()
        optimizer.zero_grad()
        model(torch.full((1, 3), transport.rank + 1.0)).square().sum().backward()
        optimizer.step()
    assert optimizer.last_round is not None
    center = {} if optimizer.center is None else optimizer.center
    assert {name: own.shape for name, own in center.items()} == {n: p.shape for n, p in model.named_parameters()}
    return optimizer.rounds, [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {}, {"averaging": "uniform", "proximity": 0.0}, {"kind": Plain, "proximity": 0.1},
        {"outer_momentum": 0.5}, {"compression": grawa_hvd.Compression.fp16}, {"fragments": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("after", [3, 4])
@pytest.mark.parametrize("change", [prune_rows, prune_columns, grow])
def test_the_layer_is_averaged_in_its_new_shape(
    change: Callable[[nn.Sequential], None], after: int, options: dict[str, Any]
) -> None:
    (rounds, first), (_, second) = run_workers(2, lambda transport: run(transport, change, after, options))
    assert rounds == 3 * options.get("fragments", 1)
    if "fragments" in options:  # the last round was of a part alone
        first, second = first[2:], second[2:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("proximity", [0.0, 0.1])
@pytest.mark.parametrize("after", [3, 4, 5])
def test_a_round_under_way_is_left_where_it_fits_no_more(after: int, proximity: float) -> None:
    options = {"overlap": 2, "averaging": "uniform", "proximity": proximity}

    def work(transport: LocalTransport) -> list[Tensor]:
        return run(transport, grow, after, options)[1]

    first, second = run_workers(2, work)
    assert all(own.isfinite().all() for own in [*first, *second])


@pytest.mark.parametrize("options", [{}, {"outer_momentum": 0.5}, {"overlap": 1}], ids=str)
def test_a_state_is_saved_where_parameters_have_gone_since_the_round(options: dict[str, Any]) -> None:
    def work(learner: Learner) -> Tensor:
        learner.step(5)
        gone = learner.optimizer.param_groups[0]["params"].pop(0)
        state = learner.optimizer.state_dict()
        assert len(state["grawa"]["state"]) == 1
        learner.optimizer.load_state_dict(state)
        learner.optimizer.param_groups[0]["params"].insert(0, gone)
        learner.step(5)
        with learner.optimizer.consensus():
            return learner.flat()

    first, second = learn(2, work, **options)
    assert torch.equal(first, second)
