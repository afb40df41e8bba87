"""The mean of the workers to look at, by equal weights and by those of the last round."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn
from workers import Learner, errors, learn

import grawa_hvd
from grawa_hvd.rounds.consensus import shares
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS = 3
# Three products and two sums of numbers below 4, and a division.
TOLERANCE = 16 * WORKERS * 2.0**-52


def looked_at(learner: Learner, weights: str) -> Tensor:
    before = learner.flat()
    with learner.optimizer.consensus(weights=weights):
        inside = learner.flat()
    assert torch.equal(before, learner.flat())
    return inside


def expected(flat: list[Tensor], weights: Tensor) -> Tensor:
    """The mean by weights of the two layers, [M, 2], of 5 and 3 numbers."""
    return (weights[:, [0] * 5 + [1] * 3] * torch.stack(flat)).sum(dim=0)


@pytest.mark.parametrize("options", [{}, {"overlap": 2}, {"fragments": 2}], ids=str)
def test_last_is_by_the_weights_of_each_layers_last_round(options: dict[str, Any]) -> None:
    def work(learner: Learner) -> Any:
        learner.step(10)
        inside, report = looked_at(learner, "last"), learner.reports[-1]
        if "fragments" not in options:
            return learner.flat(), inside, report.weights
        of_layer = {name: one.weights for one in learner.reports for name in one.layer_names}
        return learner.flat(), inside, torch.cat([of_layer["0"], of_layer["1"]], dim=1)

    flat, inside, weights = zip(*learn(WORKERS, work, averaging="lgrawa", pull=0.5, **options), strict=True)
    assert float((weights[0] - 1 / WORKERS).abs().max()) > 0.1  # or the plain mean would pass
    for found in inside:
        assert torch.equal(found, inside[0])
        torch.testing.assert_close(found, expected(list(flat), weights[0]), rtol=0, atol=TOLERANCE)


def test_the_default_is_the_plain_mean_and_so_is_last_before_the_first_round() -> None:
    def work(learner: Learner) -> Any:
        learner.step(3)
        early = looked_at(learner, "last"), looked_at(learner, "equal")
        learner.step(4)
        with learner.optimizer.consensus():
            default = learner.flat()
        return *early, default, looked_at(learner, "equal"), looked_at(learner, "last"), learner.flat()

    results = learn(WORKERS, work, averaging="lgrawa", pull=0.5)
    last, equal, default, later, weighted, _ = results[0]
    assert torch.equal(last, equal) and torch.equal(default, later) and not torch.equal(weighted, later)
    plain = torch.stack([result[-1] for result in results]).mean(dim=0)
    torch.testing.assert_close(later, plain, rtol=0, atol=TOLERANCE)


@pytest.mark.fault("diverged")
def test_who_has_diverged_is_left_out_and_the_weights_of_the_others_add_up_to_one() -> None:
    def work(learner: Learner) -> Any:
        learner.step(5)
        if learner.rank == 0:
            learner.model[1].data[0] = torch.nan
        return learner.flat(), looked_at_despite_nan(learner), learner.reports[-1].weights

    def looked_at_despite_nan(learner: Learner) -> Tensor:
        with learner.optimizer.consensus("last"):
            return learner.flat()

    flat, inside, weights = zip(*learn(WORKERS, work, averaging="lgrawa"), strict=True)
    left = weights[0][1:] / weights[0][1:].sum(dim=0)
    torch.testing.assert_close(inside[0], expected(list(flat[1:]), left), rtol=0, atol=TOLERANCE)


def test_shares_of_workers_without_any_weight_are_alike() -> None:
    weights = torch.tensor([[1.0, 0.5], [0.0, 0.25], [0.0, 0.25]], dtype=torch.float64)
    assert shares(weights, 3, [1, 2]).tolist() == [[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]]
    assert shares(weights, 3, [0, 1]).tolist() == [[1.0, 2 / 3], [0.0, 1 / 3], [0.0, 0.0]]
    assert shares(None, 3, [0, 2]).tolist() == [[0.5], [0.0], [0.5]]


@pytest.mark.fault("astray")
def test_ranks_that_ask_for_different_weights_get_one_error() -> None:
    def work(learner: Learner) -> None:
        learner.step(5)
        with learner.optimizer.consensus("equal" if learner.rank == 1 else "last"):
            raise AssertionError("the block is not entered")

    message = "consensus(weights=) must be the same on every rank, but is 'equal' on rank 1 and 'last' on ranks 0, 2"
    assert errors(WORKERS, work) == [("ValueError", message)] * WORKERS


@pytest.mark.parametrize("workers", [1, 2])
def test_other_weights_are_refused(workers: int) -> None:
    found = errors(workers, lambda learner: learner.optimizer.consensus("plain"))
    assert found == [("ValueError", 'weights must be "equal" or "last", but is \'plain\'')] * workers


@pytest.mark.parametrize("who", ["every rank", "rank 0 alone"])
def test_the_weights_are_in_checkpoints(who: str) -> None:
    """And those who take the place of one that has loaded take its weights over."""

    def work(transport: LocalTransport) -> bool:
        learner, loaded = Learner(transport, averaging="lgrawa"), Learner(transport, averaging="lgrawa")
        learner.step(6)
        state = learner.optimizer.state_dict()
        learner.step(1)
        if transport.rank == 0 or who == "every rank":
            loaded.optimizer.load_state_dict(state)
        for parameter, value in zip(loaded.model, learner.parameters(), strict=True):
            parameter.data.copy_(value)
            parameter.grad = torch.zeros_like(value)
        loaded.optimizer.step()
        return torch.equal(looked_at(loaded, "last"), looked_at(learner, "last"))

    assert run_workers(WORKERS, work) == [True] * WORKERS


def test_a_checkpoint_of_other_workers_has_no_weights_for_these() -> None:
    state = learn(2, lambda learner: (learner.step(5), learner.optimizer.state_dict())[1], averaging="lgrawa")[0]

    def work(learner: Learner) -> bool:
        learner.optimizer.load_state_dict(state)
        learner.step(1)
        return torch.equal(looked_at(learner, "last"), looked_at(learner, "equal"))

    assert learn(WORKERS, work, averaging="lgrawa") == [True] * WORKERS


def test_an_averaged_model_of_torch_is_the_tail_average_of_the_centres() -> None:
    def work(learner: Learner) -> tuple[Tensor, Tensor]:
        tail, centers = AveragedModel(learner.model), []
        for _ in range(5):
            learner.step(3)
            learner.optimizer.round_now()
            with learner.optimizer.consensus():
                tail.update_parameters(learner.model)
            centers.append(learner.center())
        return torch.cat([*tail.module.parameters()]).detach(), torch.stack(centers)

    found = learn(WORKERS, work, averaging="lgrawa")
    for average, centers in found:
        # Five updates of two roundings each, of numbers below 4, and those of the mean of workers that are alike.
        torch.testing.assert_close(average, centers.mean(dim=0), rtol=0, atol=5 * TOLERANCE)
        assert torch.equal(average, found[0][0])


def test_update_bn_within_the_consensus_takes_the_statistics_of_the_mean_model() -> None:
    first = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    batches = [torch.randn(16, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in range(4)]

    def work(transport: LocalTransport) -> tuple[Tensor, Tensor]:
        model = copy.deepcopy(first)
        optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), process_group=transport, period=8
        )
        for batch in batches:
            optimizer.zero_grad()
            model(batch + transport.rank).square().sum().backward()
            optimizer.step()
        with optimizer.consensus(), torch.no_grad():
            update_bn(batches, model)
            return model[1].running_mean.clone(), torch.stack([model[0](batch).mean(dim=0) for batch in batches])

    with_threads = run_workers(2, work)
    for mean, of_batches in with_threads:
        torch.testing.assert_close(mean, of_batches.mean(dim=0), rtol=1e-12, atol=1e-12)
        assert torch.equal(mean, with_threads[0][0])
