"""Averaging with neighbors, over workers in one process, against its formula in float64."""

from __future__ import annotations

from typing import Any

import networkx
import numpy as np
import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd import topology
from grawa_hvd.averaging import Decentralized
from grawa_hvd.averaging.decentralized import among
from grawa_hvd.transport.local import LocalTransport, run_workers

Array = np.ndarray
WORKERS, STEPS, LR, PERIOD, PULL, PROXIMITY = 5, 12, 0.1, 2, 0.7, 0.3
SHAPES = [(3, 2), (4,), (2, 2)]
ELEMENTS = 14
EPSILON = 2.0**-52
# Some ten roundings a step of numbers below 4, none of them grown by what follows.
TOLERANCE = 40 * STEPS * EPSILON

STAR = networkx.star_graph(WORKERS - 1)
GRAPHS: dict[str, dict[str, Any]] = {
    "ring": {"graph": "ring"},
    "star": {"graph": STAR},
    "laplacian of a star": {"graph": STAR, "weights": "laplacian"},
    "one peer": {},
    "pairs": {"graph": topology.RandomPairs(3)},
}


def start(worker: int) -> Array:
    return np.random.default_rng(worker).normal(size=ELEMENTS)


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng(1000 + 100 * worker + step).normal(size=ELEMENTS)


def parts(flat: Array) -> list[torch.Tensor]:
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES])[:-1]
    return [torch.from_numpy(part.reshape(shape)) for part, shape in zip(np.split(flat, ends), SHAPES, strict=True)]


def matrices(name: str) -> list[Array]:
    """The mixing matrix of each round, written down by hand."""
    eye = np.eye(WORKERS)
    if name == "ring":
        return [(eye + np.roll(eye, 1, 0) + np.roll(eye, -1, 0)) / 3] * STEPS
    edges = np.zeros((WORKERS, WORKERS))
    edges[0, 1:] = edges[1:, 0] = 1
    if name == "star":
        return [edges / WORKERS + np.diag(1 - edges.sum(1) / WORKERS)] * STEPS
    if name == "laplacian of a star":  # whose Laplacian has the eigenvalues 0, 1, …, 1, M
        return [eye - 2 / (1 + WORKERS) * (np.diag(edges.sum(1)) - edges)] * STEPS
    if name == "one peer":
        return [(eye + np.roll(eye, 2 ** (number % 3), 0)) / 2 for number in range(STEPS)]
    return [topology.RandomPairs(3).matrix(WORKERS, number).numpy() for number in range(STEPS)]


class Learner:
    """One worker's model under SGD on given gradients."""

    def __init__(self, transport: LocalTransport, **options: Any) -> None:
        self.rank = transport.rank
        self.model = nn.ParameterList(parts(start(self.rank)))
        self.optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=LR), self.model.named_parameters(), process_group=transport,
            **{"period": PERIOD, "pull": PULL, "proximity": PROXIMITY, **options},
        )  # fmt: skip

    def step(self, number: int) -> None:
        for parameter, part in zip(self.model, parts(gradient(self.rank, number)), strict=True):
            parameter.grad = part.to(parameter.dtype)
        self.optimizer.step()

    def flat(self) -> Array:
        return torch.cat([p.detach().reshape(-1) for p in self.model]).numpy().copy()

    def center(self) -> Array:
        return torch.cat([part.reshape(-1) for part in self.optimizer.center.values()]).numpy().copy()


def expected(rounds: list[Array], steps: int = STEPS) -> tuple[list[Array], list[Array]]:
    """All workers' parameters [M, elements] after each step, and their centres."""
    x, center, found, centers = np.stack([start(worker) for worker in range(WORKERS)]), None, [], []
    for step in range(steps):
        x = x - LR * np.stack([gradient(worker, step) for worker in range(WORKERS)])
        if center is not None:
            x = x + PROXIMITY / PERIOD * (center - x)
        if (step + 1) % PERIOD == 0:
            center = rounds[step // PERIOD] @ x
            x = (1 - PULL) * x + PULL * center
        found.append(x)
        centers.append(center)
    return found, centers


@pytest.mark.filterwarnings("ignore:the initial parameters of rank")
@pytest.mark.parametrize("name", GRAPHS)
def test_workers_follow_the_formula(name: str) -> None:
    def run(transport: LocalTransport) -> tuple[list[Array], Array, Any]:
        learner, found = Learner(transport, averaging=Decentralized(**GRAPHS[name])), []
        for step in range(STEPS):
            learner.step(step)
            found.append(learner.flat())
        return found, learner.center(), learner.optimizer.last_round

    rounds = matrices(name)
    wanted, centers = expected(rounds)
    for worker, (found, center, report) in enumerate(run_workers(WORKERS, run)):
        for step in range(STEPS):
            np.testing.assert_allclose(found[step], wanted[step][worker], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(center, centers[-1][worker], rtol=0, atol=TOLERANCE)
        row = rounds[STEPS // PERIOD - 1][worker]
        np.testing.assert_allclose(
            report.weights.numpy(), row[:, None].repeat(len(SHAPES), 1), rtol=0, atol=4 * EPSILON
        )


def together(options: dict[str, Any], steps: int, before_step: Any = None) -> list[Learner]:
    """All workers after some steps; `before_step` may do more, or end the worker's part by True."""

    def run(transport: LocalTransport) -> Learner:
        learner = Learner(transport, **{"averaging": Decentralized("ring"), **options})
        for step in range(steps):
            if before_step is not None and before_step(learner, step, transport):
                transport.leave()
                break
            learner.step(step)
        return learner

    return run_workers(WORKERS, run)


RING = matrices("ring")[0]
quiet = pytest.mark.filterwarnings("ignore:the initial parameters of rank")


@quiet
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_worker_hands_over_the_bytes_of_its_degree(dtype: torch.dtype) -> None:
    """Beside those of the rows, which all have."""
    sent = []
    for averaging in (Decentralized(STAR), Decentralized("ring"), Decentralized()):
        learners = together({"averaging": averaging}, 2, lambda learner, *_: learner.model.to(dtype) and False)
        sent.append([learner.optimizer.last_round.bytes for learner in learners])
    model, rows = ELEMENTS * dtype.itemsize, min(sent[2]) - ELEMENTS * dtype.itemsize
    assert 0 < rows < WORKERS * 400
    assert sent[0] == [rows + (WORKERS - 1) * model, *[rows + model] * (WORKERS - 1)]
    assert sent[1] == [rows + 2 * model] * WORKERS
    assert sent[2] == [rows + model] * WORKERS


@quiet
@pytest.mark.fault("data")
def test_the_mean_of_those_present_is_kept_when_one_leaves() -> None:
    """Its neighbors keep its weight for themselves; the others go on."""
    learners = together({"proximity": 0.0}, 6, lambda learner, step, _: learner.rank == 2 and step == 3)
    x = np.stack([start(worker) for worker in range(WORKERS)])
    for step in range(6):
        moved = x - LR * np.stack([gradient(worker, step) for worker in range(WORKERS)])
        x = np.where((np.arange(WORKERS) == 2)[:, None] & (step >= 3), x, moved)
        if step % PERIOD:
            matrix = RING if step < 3 else without(RING, 2)
            x = (1 - PULL) * x + PULL * (matrix @ x)
    for worker in (0, 1, 3, 4):
        np.testing.assert_allclose(learners[worker].flat(), x[worker], rtol=0, atol=TOLERANCE)
        assert learners[worker].optimizer.last_round.weights[2].max() == 0
    bytes_ = [learners[worker].optimizer.last_round.bytes for worker in (0, 1, 3, 4)]
    assert bytes_[0] == bytes_[3] == bytes_[1] + ELEMENTS * 8 == bytes_[2] + ELEMENTS * 8


def without(matrix: Array, absent: int) -> Array:
    result = matrix.copy()
    result[:, absent] = result[absent, :] = 0
    result += np.diag(1 - result.sum(axis=1))
    return result


@quiet
@pytest.mark.parametrize("fragments", [1, 2])
@pytest.mark.fault("diverged")
def test_a_worker_that_diverged_is_healed_by_its_neighbors_and_leaks_nowhere(fragments: int) -> None:
    def poison(learner: Learner, step: int, _: Any) -> None:
        if learner.rank == 2 and step == 2:
            learner.model[0].data[0, 0] = torch.nan

    learners = together({"proximity": 0.0, "fragments": fragments, "pull": 1.0}, 6, poison)
    assert all(np.isfinite(learner.flat()).all() and np.isfinite(learner.center()).all() for learner in learners)
    if fragments == 2:
        return
    x = np.stack([start(worker) for worker in range(WORKERS)])
    for step in range(6):
        x = x - LR * np.stack([gradient(worker, step) for worker in range(WORKERS)])
        if step == 3:
            matrix = without(RING, 2)
            matrix[2] = [0, 0.5, 0, 0.5, 0]
            x = matrix @ x
        elif step % PERIOD:
            x = RING @ x
    for worker, learner in enumerate(learners):
        np.testing.assert_allclose(learner.flat(), x[worker], rtol=0, atol=TOLERANCE)


@quiet
@pytest.mark.fault("diverged")
def test_a_worker_among_diverged_neighbors_alone_waits_for_a_round_in_which_one_is_healed() -> None:
    """In the ring 0–1–2–3–4, workers 1, 2 and 3 diverge: 1 and 3 are healed in the next round, 2 in the one after."""
    seen: list[list[bool]] = [[] for _ in range(WORKERS)]

    def poison(learner: Learner, step: int, _: Any) -> None:
        if step == 2 and learner.rank in (1, 2, 3):
            learner.model[1].data.fill_(torch.inf)
        seen[learner.rank].append(bool(np.isfinite(learner.flat()).all()))

    together({}, 8, poison)
    healthy, healed, last = [True] * 8, [True, True, False, False] + [True] * 4, [True, True] + [False] * 4 + [True] * 2
    assert seen == [healthy, healed, last, healed, healthy]


@quiet
@pytest.mark.fault("all diverged")
def test_when_all_diverged_all_say_so() -> None:
    def poison(learner: Learner, step: int, _: Any) -> None:
        learner.model[0].data.fill_(torch.nan)

    with pytest.raises(grawa_hvd.AllWorkersDivergedError):
        together({}, 2, poison)


@quiet
@pytest.mark.fault("late")
def test_one_that_arrives_late_takes_part_in_the_round_at_hand_and_in_the_graph_as_it_is_then() -> None:
    """It brings its own parameters; no one's centre is given to it, and none is taken from the others."""
    topology_ = topology.RandomPairs(5)

    def run(transport: LocalTransport) -> Learner:
        learner = Learner(transport, averaging=Decentralized(topology_), proximity=0.0)
        # The newcomer's first step of its second life meets the others at their sixth, and counts as their seventh.
        for step in range(6 if transport.rank == 1 else 8):
            if step == 4 and transport.rank == 1:
                member = learner.optimizer._worker.member
                member._handshake = type(member._handshake)(transport)
                learner.optimizer._worker.restart()
            learner.step(step)
        return learner

    x = np.stack([start(worker) for worker in range(WORKERS)])
    matrices_ = [topology_.matrix(WORKERS, number).numpy() for number in range(4)]
    for step in range(8):
        own = step - 2 if step >= 6 else step  # the newcomer's gradients
        moved = x - LR * np.stack([gradient(worker, own if worker == 1 else step) for worker in range(WORKERS)])
        x = np.where((np.arange(WORKERS) == 1)[:, None] & (step in (4, 5)), x, moved)
        if step % PERIOD:
            x = (1 - PULL) * x + PULL * (matrices_[step // PERIOD] @ x)
    learners = run_workers(WORKERS, run)
    for worker, learner in enumerate(learners):
        np.testing.assert_allclose(learner.flat(), x[worker], rtol=0, atol=TOLERANCE)
    assert [learner.optimizer.rounds for learner in learners] == [4] * WORKERS


@quiet
def test_with_fragments_each_of_them_meets_all_peers() -> None:
    """Rounds are counted by fragment: else, with two fragments and two distances, each would know one peer alone."""
    options: dict[str, Any] = {"averaging": Decentralized(), "fragments": 2, "pull": 1.0, "proximity": 0.0}

    def run(transport: LocalTransport) -> list[Array]:
        learner, found = Learner(transport, **options), []
        for step in range(4):
            learner.optimizer.param_groups[0]["lr"] = 0.0
            learner.step(step)
            found.append(learner.flat())
        return found

    results = run_workers(4, run)
    mean = np.mean([start(worker) for worker in range(4)], axis=0)
    for found in results:
        np.testing.assert_allclose(found[3], mean, rtol=0, atol=TOLERANCE)


@quiet
def test_overlap_moves_workers_by_the_mix_of_where_they_were() -> None:
    learners = together({"overlap": 1, "proximity": 0.0}, 4)
    x, pending = np.stack([start(worker) for worker in range(WORKERS)]), None
    for step in range(4):
        x = x - LR * np.stack([gradient(worker, step) for worker in range(WORKERS)])
        if pending is not None:
            x, pending = x + PULL * (RING @ pending - pending), None
        if step % PERIOD:
            pending = x
    for worker, learner in enumerate(learners):
        np.testing.assert_allclose(learner.flat(), x[worker], rtol=0, atol=TOLERANCE)


@quiet
def test_the_consensus_is_the_mean_of_all() -> None:
    found = []

    def look(learner: Learner, step: int, _: Any) -> None:
        if step == 3:
            before = learner.flat()
            with learner.optimizer.consensus():
                found.append((before, learner.flat()))

    together({}, 4, look)
    mean = np.mean([before for before, _ in found], axis=0)
    for _, inside in found:
        np.testing.assert_allclose(inside, mean, rtol=0, atol=8 * EPSILON)


@quiet
def test_a_checkpoint_continues_bitwise() -> None:
    """The centre of each worker is its own, and the graph goes on where it was."""

    def run(transport: LocalTransport) -> tuple[Array, Array]:
        options: dict[str, Any] = {"averaging": Decentralized()}
        learner = Learner(transport, **options)
        for step in range(3):
            learner.step(step)
        again = Learner(transport, **options)
        again.model.load_state_dict(learner.model.state_dict())
        again.optimizer.load_state_dict(learner.optimizer.state_dict())
        for each in (learner, again):
            for step in range(3, 8):
                each.step(step)
        return learner.flat(), again.flat()

    for found, resumed in run_workers(WORKERS, run):
        assert np.array_equal(found, resumed)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"outer_momentum": 0.5}, "outer_momentum must be left out with averaging=Decentralized, but is 0.5"),
        ({"outer_optimizer": torch.optim.SGD}, "outer_optimizer must be left out"),
        ({"local_period": 1}, "local_period must be left out"),
        ({"compression": grawa_hvd.Compression.fp16}, "compression must be Compression.none .* but is Float16"),
        ({"averaging": Decentralized(networkx.path_graph(4))}, "graph must have a node for each of the 5 workers"),
        ({"averaging": Decentralized("hypercube")}, "a hypercube needs a power of two of workers, but there are 5"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_needs_a_centre_of_all_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        run_workers(WORKERS, lambda transport: Learner(transport, **{"averaging": Decentralized("ring"), **options}))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"graph": "circle"}, "graph must be one of 'ring', .* but is 'circle'"),
        ({"graph": 3}, "graph must be a name, a networkx graph or a Topology, but is 3"),
        ({"graph": "ring", "weights": "equal"}, "weights must be .* but is 'equal'"),
        ({"graph": topology.RandomPairs(), "weights": "laplacian"}, "weights must be left out where graph is RandomP"),
    ],
)
def test_a_wrong_graph_or_wrong_weights_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Decentralized(**arguments).check(4)


def test_ranks_compare_graphs_by_their_edges() -> None:
    ring, other = networkx.cycle_graph(5), networkx.path_graph(5)
    assert Decentralized(ring).describe() == Decentralized(networkx.cycle_graph(5)).describe()
    found = {Decentralized(*each).describe() for each in [(ring,), (other,), (ring, "laplacian"), ("ring",), ()]}
    assert len(found) == 5


def test_rows_sum_to_one_whoever_is_missing() -> None:
    matrix = topology.laplacian(STAR)
    for pattern in range(1, 2**WORKERS):
        usable = torch.tensor([bool(pattern >> worker & 1) for worker in range(WORKERS)])
        found = among(matrix, usable)
        torch.testing.assert_close(found.sum(dim=1), torch.ones(WORKERS, dtype=torch.float64))
        kept = found[usable][:, usable]
        torch.testing.assert_close(kept.sum(dim=0), torch.ones(len(kept), dtype=torch.float64))
        assert not (found[:, ~usable] * (1 - torch.eye(WORKERS)[:, ~usable])).any()
