"""The family of policies against their papers' formulas, over workers in one process; bad arguments; corner cases."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import family
import numpy as np
import pytest
import torch
from torch import Tensor

import grawa_hvd
from grawa_hvd.averaging import Observed, policy
from grawa_hvd.averaging.dppf import DPPF
from grawa_hvd.averaging.easgd import EASGD
from grawa_hvd.averaging.edit import EDiT
from grawa_hvd.averaging.lsgd import LSGD
from grawa_hvd.averaging.mediancap import MedianCap
from grawa_hvd.averaging.weighted import Weighted
from grawa_hvd.transport.local import LocalTransport, run_workers

NAN = math.nan


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("name", family.CASES)
def test_a_policy_does_what_its_paper_says(name: str, workers: int) -> None:
    case = family.CASES[name]

    def work(transport: LocalTransport) -> Any:
        return family.train(case, transport.rank, partial(grawa_hvd.DistributedGrawaOptimizer, process_group=transport))

    for rank, found in enumerate(run_workers(workers, work)):
        family.check(case, rank, workers, found)


def test_outliers_are_there_in_what_is_compared() -> None:
    assert family.simulated(family.CASES["edit"], 4).memory["outliers"] > 3


def observed(displacements: list[float] | None = None, **told: list[float]) -> Observed:
    """Of workers with one layer; NaN marks one that is left out."""
    first = displacements if displacements is not None else next(iter(told.values()))
    usable = torch.tensor([displacements is None or not math.isnan(way) for way in first])
    ways = torch.tensor(first if displacements else [0.0] * len(first), dtype=torch.float64)[:, None]
    columns = {
        name: torch.tensor(told.get(name, [NAN] * len(first))).double() for name in ("losses", "accuracies", "samples")
    }
    return Observed(usable, torch.zeros_like(ways), ways, **columns)


def weights(averaging: Any, seen: Observed, state: Any = None) -> list[float]:
    """Of the only layer."""
    mixing, _ = averaging(seen, averaging.init(len(seen.usable), 1) if state is None else state)
    return [round(value, 12) for value in mixing.weights[:, 0].tolist()]


def test_the_leader_is_the_lowest_of_equals_and_one_that_reported() -> None:
    assert weights(LSGD(), observed(losses=[2.0, 1.0, 1.0])) == [0, 1, 0]
    assert weights(LSGD(), observed(losses=[NAN, 3.0, 4.0])) == [0, 1, 0]
    assert weights(LSGD(), observed(losses=[2.0, -5.0, 4.0])) == [0, 1, 0]


def test_a_leader_leads_by_the_mean_of_a_window_and_no_longer() -> None:
    averaging, seen = LSGD(window=2), [[1.0, 2.0], [4.0, 2.0], [1.0, 2.0]]
    state, leaders = averaging.init(2, 1), []
    for losses in seen:
        mixing, state = averaging(observed(losses=losses), state)
        leaders.append(mixing.weights[:, 0].tolist().index(1.0))
    assert leaders == [0, 1, 1]  # by 1 of 1 | 2; by 2.5 | 2; by 2.5 | 2


@pytest.mark.filterwarnings("ignore:the initial parameters of rank")
def test_leaders_of_hosts_go_by_the_losses_since_the_last_round() -> None:
    """Worker 1 leads host a and worker 3 host b, while worker 3 leads all."""

    def work(transport: LocalTransport) -> list[list[float]]:
        model = torch.nn.ParameterList([torch.full((2,), float(transport.rank))])
        found = []
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0), model.named_parameters(), process_group=transport,
            averaging="lsgd", period=4, local_period=2, pull=1.0, proximity=0.0,
        )  # fmt: skip
        for _ in range(4):
            model[0].grad = torch.ones(2)
            optimizer.report(loss=4.0 - transport.rank)
            optimizer.step()
            found.append(model[0][0].item())
        return found

    results = run_workers(4, work, hosts=["a", "a", "b", "b"])
    assert results == [[0, 1, 1, 3], [1, 1, 1, 3], [2, 3, 3, 3], [3, 3, 3, 3]]


def test_nobody_who_reported_nothing_counts() -> None:
    assert weights(Weighted(), observed(samples=[1.0, NAN, 3.0])) == [0.25, 0, 0.75]
    assert weights(Weighted(by="loss"), observed(losses=[NAN, 1.0, 1.0])) == [0, 0.5, 0.5]
    assert weights(Weighted(by="accuracy"), observed(accuracies=[0.0, 0.0])) == [0.5, 0.5]
    with pytest.warns(UserWarning, match="Weighted has a score of none of the 2 workers"):
        assert weights(Weighted(), observed(samples=[NAN, NAN])) == [0.5, 0.5]


def test_a_high_power_of_accuracies_leaves_the_best() -> None:
    """As the numerically best weights of "When does averaging help?": [0, 0, 0.9, 0.1]."""
    found = weights(Weighted(by="accuracy", power=20), observed(accuracies=[0.1, 0.1, 0.9, 0.8]))
    assert found == pytest.approx([0, 0, 0.9, 0.1], abs=0.02)


@pytest.mark.parametrize(
    "returned", [torch.ones(3), [1.0, 1.0], torch.tensor([-1.0, 1.0]), torch.tensor([math.inf, 1.0]), None]
)
def test_a_function_that_returns_something_else_is_an_error(returned: Any) -> None:
    def by(seen: Observed) -> Tensor:
        return returned

    with pytest.raises(ValueError, match="by must return"):
        weights(Weighted(by=by), observed(samples=[1.0, 1.0]))


def test_the_median_caps_and_who_stayed_counts_in_full() -> None:
    assert weights(MedianCap(), observed([1.0, 2.0, 8.0])) == [round(4 / 9, 12), round(4 / 9, 12), round(1 / 9, 12)]
    assert weights(MedianCap(), observed([0.0, 0.0, 5.0])) == [0.5, 0.5, 0]
    assert weights(MedianCap(), observed([0.0, 0.0])) == [0.5, 0.5]
    assert weights(MedianCap(), observed([NAN, 1.0, 1.0])) == [0, 0.5, 0.5]


def test_where_all_are_outliers_none_is_left_out() -> None:
    averaging = EDiT(warmup=1)
    state = averaging.init(2, 1)
    for ways in ([1.0, 1.0], [50.0, 50.0]):
        mixing, state = averaging(observed(ways), state)
        assert mixing.weights[:, 0].tolist() == [0.5, 0.5]
    assert weights(averaging, observed([50.0, 1.0]), state) == [0, 1]


def test_far_workers_have_weights_too() -> None:
    """Where exp(−d) is 0 in float64."""
    assert weights(EDiT(), observed([5000.0, 5000.0])) == [0.5, 0.5]


def test_workers_that_are_one_are_not_pushed() -> None:
    def work(transport: LocalTransport) -> Tensor:
        model = torch.nn.ParameterList([torch.ones(2)])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1),
            process_group=transport,
            averaging="dppf",
            period=1,
            proximity=0.0,
        )
        for _ in range(2):
            model[0].grad = torch.ones(2)
            optimizer.step()
        return model[0].detach()

    for found in run_workers(2, work):
        torch.testing.assert_close(found, torch.full((2,), 0.8))


@pytest.mark.filterwarnings("ignore:the initial parameters of rank")
def test_workers_come_to_rest_where_push_and_pull_are_equal() -> None:
    """At λ/α from their mean: here .2 on either side."""

    def work(transport: LocalTransport) -> Tensor:
        model = torch.nn.ParameterList([torch.full((3,), float(transport.rank))])
        optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.0),
            process_group=transport,
            averaging=DPPF(0.5, 0.1),
            period=1,
            proximity=0.0,
        )
        for _ in range(60):
            model[0].grad = torch.ones(3)
            optimizer.step()
        return model[0].detach().double()

    low, high = run_workers(2, work)
    assert float((high - low).norm() / 2) == pytest.approx(0.2, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (EASGD, {"beta": 0.0}), (EASGD, {"beta": 1.5}), (LSGD, {"window": 0}), (LSGD, {"window": 2.0}),
        (Weighted, {"by": "steps"}), (Weighted, {"power": -1.0}), (Weighted, {"temperature": 0.0}),
        (EDiT, {"temperature": 0.0}), (EDiT, {"threshold": -1.0}), (EDiT, {"decay": 1.0}), (EDiT, {"warmup": 0}),
        (DPPF, {"alpha": 0.0}), (DPPF, {"push": -0.1}), (DPPF, {"push": NAN}),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(kind: Any, arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=f"^{name} must be"):
        kind(**arguments)


@pytest.mark.parametrize("option", [{"outer_momentum": 0.5}, {"outer_optimizer": partial(torch.optim.SGD, lr=1.0)}])
def test_easgd_moves_the_centre_itself(option: dict[str, Any]) -> None:
    def work(transport: LocalTransport) -> None:
        model = torch.nn.ParameterList([torch.ones(2)])
        grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), process_group=transport, averaging="easgd", **option
        )

    with pytest.raises(ValueError, match=r"only one of these can move the centre, but there are .* averaging=EASGD"):
        run_workers(1, work)


def test_the_names_are_those_of_the_classes() -> None:
    for kind in (EASGD, LSGD, Weighted, MedianCap, EDiT, DPPF):
        assert type(policy(kind.__name__.lower())) is kind
        assert getattr(grawa_hvd.averaging, kind.__name__) is kind


def test_the_demo_of_a_paper_can_fail() -> None:
    case = family.CASES["mediancap"]
    run = family.simulated(case, 2)
    assert run.center is not None
    found = (run.workers[0], [c + 1e-9 for c in run.center])
    with pytest.raises(AssertionError):
        family.check(case, 0, 2, found)
    assert np.isfinite(np.concatenate(run.center)).all()
