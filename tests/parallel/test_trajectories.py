"""What real ranks compute, step by step, against the float64 simulation of the formulas."""

from __future__ import annotations

import itertools

import numpy as np
import peers
import pytest
from learner import STEPS, TOLERANCE, Learner, compare, relative, too_large
from simulation import Parameters, Scheme, Simulation, network_gradient, network_parameters

import grawa_hvd

pytestmark = pytest.mark.ranks(4)

POLICIES = itertools.product(["uniform", "grawa", "mgrawa", "lgrawa"], ["local", "fresh"])
GRID = [
    pytest.param(
        Scheme(averaging, scores, period=5, pull=pull, proximity=proximity, outer_momentum=outer_momentum, floor=floor),
        id=f"{averaging}-{scores}-floor{floor}-proximity{proximity}-pull{pull}-outer{outer_momentum}",
    )
    for (averaging, scores), (floor, proximity), pull, outer_momentum in itertools.product(
        POLICIES, [(1.0, 0.0), (0.0, 0.3)], [0.3, 1.0], [0.0, 0.7]
    )
]


@pytest.mark.parametrize("scheme", GRID)
def test_ranks_follow_the_formulas(scheme: Scheme) -> None:
    assert not too_large(compare(scheme))


IN_TWO_GROUPS = [
    pytest.param(Scheme(averaging, period=5, pull=0.3, proximity=0.3, outer_momentum=outer), id=f"{averaging}-{outer}")
    for averaging in ("uniform", "grawa", "mgrawa", "lgrawa")
    for outer in (0.0, 0.7)
]


@pytest.mark.parametrize("scheme", IN_TWO_GROUPS)
def test_averages_in_two_groups_follow_the_formulas(scheme: Scheme) -> None:
    assert not too_large(compare(scheme, groups=2))


VARIANTS = {
    "defaults": Scheme(),
    "period-1": Scheme(period=1, proximity=0.3, pull=0.3),
    "period-as-long-as-the-run": Scheme(period=STEPS),
    "momentum": Scheme(momentum=0.9, lr=0.02, proximity=0.3),
    "momentum-fresh-outer": Scheme("grawa", "fresh", momentum=0.9, lr=0.02, proximity=0.3, outer_momentum=0.5),
}


@pytest.mark.parametrize("scheme", VARIANTS.values(), ids=VARIANTS)
def test_variants_follow_the_formulas(scheme: Scheme) -> None:
    assert not too_large(compare(scheme))


@pytest.mark.parametrize("averaging", ["grawa", "mgrawa", "lgrawa"])
@pytest.mark.parametrize("scores", ["local", "fresh"])
def test_layers_by_module_follow_the_formulas(averaging: str, scores: str) -> None:
    scheme = Scheme(averaging, scores, proximity=0.3)
    assert not too_large(compare(scheme, layer_of=[0, 0, 1, 1], layers="module"))


def test_layers_are_named_as_asked() -> None:
    names = {}
    for layers in ("parameter", "module"):
        learner = Learner(Scheme(period=1), layers=layers)
        learner.step()
        names[layers] = learner.optimizer.last_round.layer_names
    assert names == {"parameter": ["0.weight", "0.bias", "2.weight", "2.bias"], "module": ["0", "2"]}


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_number_of_groups_changes_no_formula(groups: int) -> None:
    assert not too_large(compare(Scheme(outer_momentum=0.7, proximity=0.3), groups=groups))


def test_groups_as_lists_change_no_formula() -> None:
    """Lists out of order, with one parameter left out."""
    scheme = Scheme(outer_momentum=0.7, proximity=0.3)
    assert not too_large(compare(scheme, groups=[[3, 0], [2]]))


def sizes(simulation: Simulation) -> Parameters:
    """Σ_m β|x| of the last round, x just before the pull: what is left of it is (1 − λ)·x + λ·c."""
    pull, weights = simulation.scheme.pull, simulation.rounds[-1].weights
    return [
        sum(
            weights[m, index] * np.abs((worker[index] - pull * center) / (1 - pull))
            for m, worker in enumerate(simulation.workers)
        )
        for index, center in enumerate(simulation.center)
    ]


def test_half_precision_on_the_wire_costs_its_rounding_and_no_more(size: int) -> None:
    """A center that travelled as float16: each worker's part is rounded once, each of M − 1 sums once, u = 2⁻¹¹.

    That is at most M·u·Σ β|x|, and M·2⁻²⁵ where numbers are subnormal. A round moves workers by λ of it, so R rounds
    by R·λ·M·u of the parameters.
    """
    scheme, unit = Scheme(proximity=0.3), 2.0**-11
    simulation = Simulation(scheme, [network_parameters()] * size, network_gradient)
    learner = Learner(scheme, compression=grawa_hvd.Compression.fp16)
    within: list[bool] = []
    for step in range(1, STEPS + 1):
        simulation.step()
        learner.step()
        if step == scheme.period:
            for found, expected, parts in zip(
                learner.center().values(), simulation.center, sizes(simulation), strict=True
            ):
                bound = size * (unit * parts + 2.0**-25) + TOLERANCE * np.abs(expected).max()
                within.append(bool((np.abs(found - expected) <= bound).all()))
    assert all(within)
    rounds = len(simulation.rounds)
    final = relative(learner.parameters(), simulation.workers[peers.rank()])
    assert 1e-6 < final <= rounds * scheme.pull * size * unit


@pytest.mark.fault("gradients")
def test_a_worker_without_gradient_in_a_layer_has_no_say_there() -> None:
    """Rank 0 never uses the second layer; in the simulation its gradient there is zero."""
    scheme = Scheme("lgrawa", period=2, pull=1.0, proximity=0.0)

    def gradient(worker: int, batch: int, parameters: Parameters) -> tuple[float, Parameters]:
        loss, gradients = network_gradient(worker, batch, parameters)
        return loss, [g * (0.0 if worker == 0 and index >= 2 else 1.0) for index, g in enumerate(gradients)]

    simulation = Simulation(scheme, [network_parameters()] * peers.size(), gradient)
    learner = Learner(scheme)
    for _ in range(4):
        simulation.step()
        learner.optimizer.zero_grad()
        learner.steps += 1
        learner.backward(learner.steps)
        if peers.rank() == 0:
            for parameter in list(learner.model.parameters())[2:]:
                parameter.grad = None
        learner.optimizer.step()
    weights = learner.optimizer.last_round.weights
    assert weights[0, 2:].tolist() == [0.0, 0.0]
    assert np.abs(weights.numpy() - simulation.rounds[-1].weights).max() <= TOLERANCE
    assert relative(learner.parameters(), simulation.workers[peers.rank()]) <= TOLERANCE
