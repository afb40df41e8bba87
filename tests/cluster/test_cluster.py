"""12 workers on 3 hosts: they come to what the formulas say, and the wire carries their rounds and no more."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machine import succeed
from problem import CLASSES, FEATURES, LEARNING_RATE, PAIRS, WORKERS, Problem
from simulation import Parameters, Scheme, Simulation, distance_between

pytestmark = pytest.mark.usefixtures("cluster")

HERE = Path(__file__).resolve().parent
ENVIRONMENT = Path(sys.executable).parent
STEPS = 24
HOST_OF = (0,) * 4 + (1,) * 4 + (2,) * 4
# Rounding moves a logit, a sum of 57 weights, by 57 u Σ|w| ≤ 57 √57 u ‖w‖, and the gradient by √57 / 2 of that: with
# the step size, 57² / 2 · 0.05 = 81 u ‖w‖ a step. Four more for gradient, update, proximity and pull. Convex: a sum.
TERMS = PAIRS + 1
TOLERANCE = STEPS * (TERMS**2 / 2 * LEARNING_RATE + 4) * 2.0**-24


@dataclass(frozen=True)
class Case:
    """A run: the scheme of the simulation, more arguments of the optimizer, and what a parameter costs on the wire."""

    scheme: Scheme
    options: dict[str, Any] = field(default_factory=dict)
    bytes_per_element: int = 4
    tolerance: float = TOLERANCE
    most_on_wire: float = 1.19  # of the payload of the common rounds

    def arguments(self) -> str:
        scheme = self.scheme
        return json.dumps(
            {
                "averaging": scheme.averaging,
                "period": scheme.period,
                "pull": scheme.pull,
                "proximity": scheme.proximity,
                "outer_momentum": scheme.outer_momentum,
                "local_period": scheme.local_period or None,
                **self.options,
            }
        )


@dataclass(frozen=True)
class Outcome:
    """A case, and what each rank wrote down."""

    case: Case
    ranks: list[dict[str, Any]]

    @property
    def rounds(self) -> int:
        return STEPS // self.case.scheme.period


CASES = {
    "lgrawa": Case(Scheme("lgrawa", period=4, proximity=0.3, lr=LEARNING_RATE)),
    "hierarchy": Case(
        Scheme("lgrawa", period=8, proximity=0.3, lr=LEARNING_RATE, local_period=2, host_of=HOST_OF),
        # Three times as many rounds within hosts, for which all ranks exchange rows. Their sums would make it 4.
        most_on_wire=1.4,
    ),
    # A round rounds 12 contributions and 11 sums to 11 bits, relative to how far workers have moved since the last one,
    # and all that parameters are is such moves; half of it reaches a worker.
    "compression": Case(
        Scheme("lgrawa", period=4, proximity=0.3, lr=LEARNING_RATE),
        options={"compression": "fp16"},
        bytes_per_element=2,
        tolerance=TOLERANCE + 23 * 2.0**-12,
    ),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def outcome(request: pytest.FixtureRequest, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Train on 12 ranks, 4 on each host."""
    folder = tmp_path_factory.mktemp("ranks")
    succeed(
        *("exec", "--timeout", "360", "host1", "--"),
        # A longer cycle than the default's 1 ms: Horovod asks all ranks in each whether there is anything to do.
        *(
            "env",
            "HOROVOD_CYCLE_TIME=10",
            "HOROVOD_DYNAMIC_PROCESS_SETS=1",
            "HOROVOD_GLOO_TIMEOUT_SECONDS=120",
            str(ENVIRONMENT / "horovodrun"),
            "--gloo",
            "--disable-cache",
        ),
        *("-np", str(WORKERS), "-H", "host1:4,host2:4,host3:4", "--network-interfaces", "eth0"),
        *(sys.executable, str(HERE / "train.py"), "--steps", str(STEPS)),
        *("--options", request.param.arguments(), "--output", str(folder)),
        seconds=390,
    )
    ranks = []
    for rank in range(WORKERS):
        with np.load(folder / f"rank{rank}.npz") as file:
            ranks.append(dict(file))
    return Outcome(request.param, ranks)


def simulate(scheme: Scheme) -> Simulation:
    problem = Problem()
    simulation = Simulation(scheme, [problem.start()] * WORKERS, problem.gradient)
    for _ in range(STEPS):
        simulation.step()
    return simulation


def relative(found: Parameters, expected: Parameters) -> float:
    return distance_between(found, expected) / distance_between(expected, [np.zeros_like(array) for array in expected])


def of(rank: dict[str, Any], what: str) -> Parameters:
    return [rank[f"{what}.{name}"].astype(np.float64) for name in ("weights", "bias")]


def test_ranks_are_spread_over_the_hosts(outcome: Outcome) -> None:
    assert [str(rank["host"]) for rank in outcome.ranks] == ["host1"] * 4 + ["host2"] * 4 + ["host3"] * 4
    assert {int(rank["local_size"]) for rank in outcome.ranks} == {4}


def test_workers_follow_the_formulas(outcome: Outcome) -> None:
    simulation = simulate(outcome.case.scheme)
    weights = np.stack([round_.weights for round_ in simulation.rounds])
    for rank, worker in zip(outcome.ranks, simulation.workers, strict=True):
        assert relative(of(rank, "parameter"), worker) <= outcome.case.tolerance
        assert relative(of(rank, "center"), simulation.center) <= outcome.case.tolerance
        assert np.abs(rank["weights"] - weights).max() <= outcome.case.tolerance


def test_tolerance_tells_gradient_norm_weights_from_uniform_ones() -> None:
    weighted, uniform = (
        simulate(Scheme(name, period=4, proximity=0.3, lr=LEARNING_RATE)) for name in ("lgrawa", "uniform")
    )
    assert relative(uniform.center, weighted.center) > 10 * TOLERANCE


def test_center_is_bitwise_the_same_on_all_hosts(outcome: Outcome) -> None:
    first = outcome.ranks[0]
    for rank in outcome.ranks[1:]:
        assert all((rank[name] == first[name]).all() for name in ("center.weights", "center.bias", "weights"))


def test_wire_carries_the_rounds_and_little_else(outcome: Outcome) -> None:
    """A ring of M ranks in the order of the hosts: the last of each sends 2 (M − 1) / M of a buffer to the next host.

    To that come a header of 66 bytes for each segment, which holds 1448 bytes or more, and an acknowledgement of 66 for
    each that comes in: 9 % at most. 10 % more is left for what Horovod's ranks tell each other of each message, and
    what they tell each other in every cycle, idle or not, goes by the time that it took: it was measured, too.
    """
    rounds = outcome.rounds - 1  # the wire is watched from the end of the first on
    model = outcome.case.bytes_per_element * (FEATURES + 1) * CLASSES
    for rank in outcome.ranks:
        # Beside the model, each rank's row of the [M, L] matrix of scores, and counters.
        assert rounds * model <= rank["handed_over"] <= rounds * (model + 10_000)
        payload = 2 * (WORKERS - 1) / WORKERS * rank["handed_over"]
        for way in ("sent", "received"):
            idle = 1.25 * rank[f"idle_{way}"] * rank["seconds"]
            assert payload <= rank[way] <= outcome.case.most_on_wire * payload + idle
