"""Simulated workers against real ones, each in a thread of its own, on the same batches in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.averaging import POLICIES, Averaging, Column, Decentralized, Observed, Recipe, Uniform
from grawa_hvd.report import RoundReport
from grawa_hvd.rounds.pull import Constant
from grawa_hvd.scores import FreshScores, LocalScores
from grawa_hvd.simulation import Simulation, batches, simulate
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS, BATCH, STEPS, SEED = 4, 5, 26, 3
SIZES = (17, 3, 9, 60)  # a batch has more than all samples of the smallest shard
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
# Four float64 roundings of a parameter a step (gradient, update, proximity, pull), each of up to 2⁻⁵³ of numbers below
# 2, all in one direction.
TOLERANCE = 4 * STEPS * 2.0**-52

Shards = list[tuple[Tensor, Tensor]]


def network() -> nn.Module:
    """The same for all, drawn by a generator of its own: the threads of real workers share torch's."""
    model, generator = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), torch.Generator()
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator.manual_seed(parameter.numel())) / 3)
    return model


def data(sizes: tuple[int, ...] = SIZES) -> Shards:
    """Shards whose targets differ in scale, so that the workers' norms do."""
    generator = torch.Generator().manual_seed(1)
    pairs = []
    for worker, size in enumerate(sizes):
        inputs = torch.randn(size, 6, generator=generator, dtype=torch.float64)
        pairs.append((inputs, (worker + 1) * torch.randn(size, 3, generator=generator, dtype=torch.float64)))
    return pairs


def near(outputs: Tensor, targets: Tensor) -> Tensor:
    """A share of right answers, of a kind."""
    return (outputs.detach() - targets).abs().lt(1).double().mean()


@dataclass
class Real:
    """What one real worker has come to."""

    parameters: dict[str, Tensor]
    center: dict[str, Tensor] | None
    losses: list[float]
    rounds: list[RoundReport]


def real(transport: LocalTransport, shards: Shards, optimizer: Any, fresh: bool, **options: Any) -> Real:
    """One real worker that learns from the simulation's batches."""
    model, (inputs, targets) = network(), shards[transport.rank]
    drawn = batches(len(inputs), BATCH, SEED, transport.rank)

    def backward() -> Tensor:
        rows = next(drawn)
        loss = nn.functional.mse_loss(model(inputs[rows]), targets[rows])
        loss.backward()
        measured.append((loss.item(), float(near(model(inputs[rows]), targets[rows]))))
        return loss

    rounds: list[RoundReport] = []
    measured: list[tuple[float, float]] = []
    losses = []
    averaging = grawa_hvd.DistributedGrawaOptimizer(
        optimizer(model.parameters()), model.named_parameters(), process_group=transport, on_round=rounds.append,
        **({"scores": FreshScores(backward)} if fresh else {}), **options,
    )  # fmt: skip
    for _ in range(STEPS):
        averaging.zero_grad()
        backward()
        loss, accuracy = measured[-1]
        losses.append(loss)
        averaging.report(loss=loss, accuracy=accuracy, samples=BATCH)
        averaging.step()
    return Real({name: p.detach() for name, p in model.named_parameters()}, averaging.center, losses, rounds)


def check(optimizer: Any = SGD, shards: Shards | None = None, scores: Any = "local", **options: Any) -> Simulation:
    """Run both and compare all that they have in common."""
    shards = shards or data()
    options = {"averaging": "lgrawa", "period": 6, "proximity": 0.3, "pull": 0.4, **options}
    given = {} if scores == "fresh" else {"scores": scores}
    simulation = simulate(
        network(), nn.functional.mse_loss, shards, optimizer=optimizer, steps=STEPS, batch_size=BATCH, seed=SEED,
        accuracy=near, scores=scores, progress=False, **options,
    )  # fmt: skip
    close = partial(torch.testing.assert_close, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    workers = run_workers(
        len(shards), partial(real, shards=shards, optimizer=optimizer, fresh=scores == "fresh", **given, **options)
    )
    for number, worker in enumerate(workers):
        close({name: value[number] for name, value in simulation.workers.items()}, worker.parameters)
        if simulation.center is not None:  # with neighbors, each worker has its own
            close(simulation.center, worker.center)
        close(simulation.losses[:, number], torch.tensor(worker.losses, dtype=torch.float64))
        assert [report.step for report in simulation.rounds] == [report.step for report in worker.rounds]
        for found, expected in zip(simulation.rounds, worker.rounds, strict=True):
            if number == 0 or simulation.center is not None:  # with neighbors, a report has the weights of its worker
                close(found.weights, expected.weights)
            close(found.scores, expected.scores)
            close(found.losses, expected.losses)
            close(torch.tensor(found.distances), torch.tensor(expected.distances))
            assert found.layer_names == expected.layer_names
    return simulation


@pytest.mark.parametrize("averaging", POLICIES)
def test_every_policy_does_what_it_does_among_real_workers(averaging: str) -> None:
    simulation = check(averaging=averaging)
    assert len(simulation.rounds) == STEPS // 6
    assert (simulation.center is None) == (averaging == "decentralized")


@pytest.mark.parametrize(
    "options",
    [
        {"outer_momentum": 0.6},
        {"averaging": "uniform", "pull": 1.0, "outer_optimizer": NESTEROV},
        {"warmup_steps": 3},
        {"period": lambda progress: 1 + progress.rounds},
        {"layers": "module"},
        {"scores": "fresh"},
        {"scores": LocalScores(decay=0.0), "period": 1},
    ],
    ids=["outer momentum", "DiLoCo", "warm-up", "growing period", "module", "fresh", "every step"],
)  # fmt: skip
def test_every_option_does_what_it_does_among_real_workers(options: dict[str, Any]) -> None:
    check(**options)


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
        partial(torch.optim.Adam, lr=0.01, amsgrad=True),
        partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
        partial(torch.optim.Adagrad, lr=0.1),
    ],
    ids=["SGD", "AdamW", "Adam", "RMSprop", "Adagrad"],
)
def test_optimizers_step_the_stack_as_they_step_each_worker(optimizer: Any) -> None:
    check(optimizer)


@dataclass(frozen=True)
class Elastic(Averaging):
    """EASGD, whose workers are pulled toward the old centre."""

    needs: ClassVar[frozenset[Column]] = frozenset()

    def recipe(self) -> Recipe:
        return Recipe(Uniform(), partial(torch.optim.SGD, lr=0.43), Constant(0.43 / WORKERS, "old"), "first step")


@dataclass(frozen=True)
class ByDistance:
    """DPPF: a pull against a push that falls off with the distance."""

    anchor: ClassVar[str] = "new"

    def strength(self, workers: int) -> Callable[[Tensor], Tensor]:
        return lambda distance: 0.5 - 0.1 / distance


@dataclass(frozen=True)
class PushPull(Averaging):
    needs: ClassVar[frozenset[Column]] = frozenset()

    def recipe(self) -> Recipe:
        return Recipe(Uniform(), pull=ByDistance())


@dataclass(frozen=True)
class Farthest(Averaging):
    """By displacements, and it remembers how many rounds there were."""

    needs: ClassVar[frozenset[Column]] = frozenset({Column.DISPLACEMENTS, Column.NORMS})

    def scores(self, observed: Observed) -> Tensor:
        return (
            1 / (1 + observed.displacements) + observed.norms + observed.accuracies[:, None] + observed.samples[:, None]
        )

    def init(self, workers: int, layers: int) -> Any:
        return 0

    def __call__(self, observed: Observed, state: Any) -> Any:
        mixing, _ = super().__call__(observed, ())
        return mixing._replace(weights=mixing.weights.roll(state, dims=0)), state + 1


@pytest.mark.parametrize("averaging", [Elastic(), PushPull(), Farthest()], ids=["Elastic", "PushPull", "Farthest"])
def test_recipes_of_other_pieces_do_what_they_do_among_real_workers(averaging: Averaging) -> None:
    check(averaging=averaging)


ADAM = partial(torch.optim.AdamW, lr=0.01)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": ADAM},
        {"averaging": "uniform"},
        {"averaging": Elastic()},
        {"scores": "fresh"},
        {"averaging": Decentralized("ring")},
        {"warmup_steps": 14},
        {"warmup_steps": 14, "averaging": Elastic()},
    ],
    ids=["lgrawa", "AdamW", "uniform", "Elastic", "fresh", "ring", "warm-up", "warm-up, Elastic"],
)
def test_a_worker_that_diverges_is_left_out_and_healed_as_among_real_workers(options: dict[str, Any]) -> None:
    shards = data()
    shards[3][0][4] = torch.nan  # it comes once in 12 steps, two cycles
    simulation = check(shards=shards, **options)
    left_out = [bool(report.scores[3].isnan().all()) for report in simulation.rounds]
    assert any(left_out) and not all(left_out)
    if simulation.center is not None:
        assert [bool((report.weights[3] == 0).all()) for report in simulation.rounds] == left_out
    assert all(value.isfinite().all() for value in simulation.state_dict.values())


def test_no_worker_is_left_where_all_diverge() -> None:
    shards = data()
    for inputs, _ in shards:
        inputs.fill_(torch.inf)
    with pytest.raises(grawa_hvd.AllWorkersDivergedError, match="none of the 4 workers"):
        check(shards=shards)


def test_one_worker_is_trained_by_its_optimizer_alone() -> None:
    simulation = simulate(
        network(), nn.functional.mse_loss, data()[:1], optimizer=SGD, steps=9, batch_size=BATCH, seed=SEED,
        period=2, proximity=1.0, progress=False,
    )  # fmt: skip
    model, (inputs, targets) = network(), data()[0]
    optimizer = SGD(model.parameters())
    for rows in islice(batches(len(inputs), BATCH, SEED, 0), 9):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(simulation.state_dict, model.state_dict(), rtol=TOLERANCE, atol=TOLERANCE)
    assert simulation.rounds == [] and simulation.center is None


def test_scores_may_go_by_a_batch_that_all_share() -> None:
    held_out = data((40,))[0]
    simulation = simulate(
        network(), nn.functional.mse_loss, data(), optimizer=SGD, steps=4, batch_size=BATCH, seed=SEED, period=4,
        averaging="lgrawa", pull=0.0, proximity=0.0, scores=held_out, progress=False,
    )  # fmt: skip
    for number, scores in enumerate(simulation.rounds[0].scores):
        model = network()
        model.load_state_dict({name: value[number] for name, value in simulation.workers.items()})
        nn.functional.mse_loss(model(held_out[0]), held_out[1]).backward()
        norms = torch.stack([parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None])
        torch.testing.assert_close(scores, norms, rtol=TOLERANCE, atol=0)
