"""A simulation in one process against real ranks that learn from the same batches."""

from __future__ import annotations

from functools import partial
from typing import Any

import peers
import pytest
import torch
from models import across, flat
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.simulation import Simulation, batches, simulate

pytestmark = pytest.mark.ranks(4)

STEPS, BATCH, SEED = 20, 4, 2
OPTIONS: dict[str, Any] = {"period": 5, "proximity": 0.3, "pull": 0.4}
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
# Four float64 roundings of a parameter a step (gradient, update, proximity, pull), each of up to 2⁻⁵³ of numbers below
# 2, all in one direction.
TOLERANCE = 4 * STEPS * 2.0**-52


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def shards() -> list[tuple[Tensor, Tensor]]:
    """Shards whose targets differ in scale, so that the workers' norms do."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for rank in range(peers.size()):
        inputs = torch.randn(10 + rank, 6, generator=generator, dtype=torch.float64)
        pairs.append((inputs, (rank + 1) * torch.randn(10 + rank, 3, generator=generator, dtype=torch.float64)))
    return pairs


def real(averaging: str, **options: Any) -> tuple[nn.Module, Any]:
    """This rank's worker, trained."""
    model, (inputs, targets) = network(), shards()[peers.rank()]
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        SGD(model.parameters()), model.named_parameters(), averaging=averaging, **OPTIONS, **options
    )
    drawn = batches(len(inputs), BATCH, SEED, peers.rank())
    for _ in range(STEPS):
        rows = next(drawn)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.report(loss=loss, samples=BATCH)
        optimizer.step()
    return model, optimizer


def simulated(averaging: str, **options: Any) -> Simulation:
    return simulate(
        network(), nn.functional.mse_loss, shards(), optimizer=SGD, steps=STEPS, batch_size=BATCH, seed=SEED,
        averaging=averaging, progress=False, **OPTIONS, **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"outer_momentum": 0.5}], ids=["plain", "outer momentum"])
@pytest.mark.parametrize("averaging", ["lgrawa", "grawa", "uniform"])
def test_real_ranks_come_to_what_the_simulation_says(averaging: str, options: dict[str, Any]) -> None:
    expected = simulated(averaging, **options)
    model, optimizer = real(averaging, **options)
    workers = across(model)  # a collective: before anything that may fail on one rank
    with optimizer.consensus():
        mean = flat(model)
    close = partial(torch.testing.assert_close, rtol=TOLERANCE, atol=TOLERANCE)
    close(workers, torch.stack([flat(value[rank] for value in expected.workers.values()) for rank in range(4)]))
    close(mean, flat(expected.state_dict.values()))
    close(flat(optimizer.center.values()), flat(expected.center.values()))
    close(optimizer.last_round.weights, expected.rounds[-1].weights)
    assert optimizer.rounds == len(expected.rounds) == STEPS // 5
