"""Averages that travel beside the rows: what they are must not differ from averages that travel after them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import pytest
import torch
from models import copies, equal_on_all_ranks, errors, from_all
from torch import Tensor, nn

import grawa_hvd
import grawa_hvd.companion
from grawa_hvd.averaging import LGRAWA
from grawa_hvd.communicator import Communicator

pytestmark = [pytest.mark.ranks(2), pytest.mark.filterwarnings("ignore:the initial parameters")]

LARGEST = grawa_hvd.companion.LARGEST
BESIDE, AFTER = {"companion"}, {"bucket"}


class OfTheUser(LGRAWA):
    """Nothing is assumed of it."""


def tensors(dtype: torch.dtype = torch.float32, second: torch.dtype | None = None) -> nn.Sequential:
    """Three modules, six tensors, one of them with channels; no forward pass is made."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Linear(4, 3), nn.Linear(3, 2).to(second or dtype)).to(
        None if second else dtype
    )


class Run:
    """A model whose gradients and whose drift are given: on either path it sees the same, bit by bit."""

    def __init__(self, model: nn.Module | None = None, **options: Any) -> None:
        self.model = tensors() if model is None else model
        self.steps = 0
        self.optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=0.0), self.model.named_parameters(), **{"period": 1, **options}
        )
        self.reports: list[Any] = []

    def drift(self) -> None:
        """Move the parameters and set gradients, as this rank's training would."""
        self.steps += 1
        generator = torch.Generator().manual_seed(1000 * self.steps + hvd.rank())
        for parameter in self.model.parameters():
            shift, gradient = (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) for _ in range(2))
            parameter.data.add_(0.1 * shift.to(parameter))
            parameter.grad = (gradient * (1 + hvd.rank())).to(parameter)

    def step(self, change: Callable[[list[Tensor]], None] = lambda parameters: None) -> None:
        """One step, after `change` has had its way with gradients and parameters."""
        self.drift()
        with torch.no_grad():
            change(list(self.model.parameters()))
        self.optimizer.step()

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters, centre and velocity, and what the last round reported."""
        found = {f"x of {name}": parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        for number, saved in self.optimizer.state_dict()["grawa"]["state"].items():
            found.update({f"{kind} of {number}": tensor.clone() for kind, tensor in saved.items()})
        report = self.optimizer.last_round
        return {**found, "weights": report.weights.clone(), "scores": report.scores.clone()}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this rank sends: "companion" with a row, and by their names the sums after rows: "bucket", "adopt"."""
    names: list[str] = []
    start, gather = Communicator.sum_async_, Communicator.gather

    def noted(self: Communicator, buffer: Tensor, what: str, *arguments: Any, **options: Any) -> Any:
        names.append(what.split(".", maxsplit=1)[0])
        return start(self, buffer, what, *arguments, **options)

    def gathered(self: Communicator, row: Tensor, what: str, wire: Tensor | None = None) -> Tensor:
        if wire is not None:
            names.append("companion")
        return gather(self, row, what, wire)

    monkeypatch.setattr(Communicator, "sum_async_", noted)
    monkeypatch.setattr(Communicator, "gather", gathered)
    return names


@pytest.fixture
def on_both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """Plays a scenario beside the rows and after them."""

    def play(scenario: Callable[[], Any]) -> tuple[Any, Any]:
        found = []
        for largest in (LARGEST, 0):
            monkeypatch.setattr(grawa_hvd.companion, "LARGEST", largest)
            found.append(scenario())
        monkeypatch.setattr(grawa_hvd.companion, "LARGEST", LARGEST)
        return found[0], found[1]

    return play


def difference(one: dict[str, Tensor], other: dict[str, Tensor], rounds: int) -> dict[str, float]:
    """What differs by more than rounding, and by how much.

    A round: factor, product, M − 1 sums, reciprocal, product on one side; weight, product, sums on the other; the move
    of the centre and of velocity, and the pull: fewer than 2M + 12 roundings, of numbers up to the largest. Weights sum
    to 1, so rounds do not stretch errors; momentum, 0.5 here, at most doubles them.
    """
    wrong = dict.fromkeys(one.keys() ^ other.keys(), math.nan)
    for name in one.keys() & other.keys():
        a, b = one[name], other[name]
        bound = rounds * 2 * (2 * hvd.size() + 12) * torch.finfo(a.dtype).eps * max(1.0, float(b.abs().max()))
        if name in ("weights", "scores"):  # from the same norms by the same function
            bound = 0.0
        error = float((a.double() - b.double()).nan_to_num(nan=0.0).abs().max())
        if not (error <= bound and torch.equal(a.isnan(), b.isnan())):
            wrong[name] = error
    return wrong


KINDS: dict[str, Callable[[], nn.Module]] = {
    "float32": tensors,
    "float64": lambda: tensors(torch.float64),
    "channels_last": lambda: tensors().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
}
POLICIES = ["grawa", "mgrawa", "lgrawa", "uniform"]
CASES = [
    *((kind, {"averaging": policy, "outer_momentum": outer})
      for kind, policy, outer in [(k, p, o) for k in ("float32", "float64") for p in POLICIES for o in (0.0, 0.5)]),
    *((kind, {"outer_momentum": outer, "pull": 1.0}) for kind in KINDS for outer in (0.0, 0.5)),
    *((kind, {"averaging": policy, "layers": "module"}) for kind in ("float32", "float64") for policy in POLICIES),
    *((kind, {"groups": groups, "outer_momentum": 0.5}) for kind in KINDS for groups in (2, 6)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=["-".join(map(str, [kind, *options.values()])) for kind, options in CASES]
)
def test_the_two_paths_agree(kind: str, options: dict[str, Any], on_both: Any, sent: list[str]) -> None:
    """Centre, velocity, parameters, weights and scores, over some rounds; and each path is the one it should be."""

    def scenario() -> tuple[dict[str, Tensor], set[str], bool]:
        sent.clear()
        run = Run(KINDS[kind](), **options)
        for _ in range(4):
            run.step()
        return run.state, set(sent), equal_on_all_ranks(run.optimizer.center.values())

    (one, by_one, alike), (other, by_other, _) = on_both(scenario)
    assert difference(one, other, rounds=4) == {}
    assert (by_one, by_other, alike) == (BESIDE, AFTER, True)


def scaled(layers: tuple[int, ...], factor: float | None) -> Callable[[list[Tensor]], None]:
    """Gradients of some layers, multiplied; None takes them away."""

    def change(parameters: list[Tensor]) -> None:
        for layer in layers:
            parameter = parameters[layer]
            parameter.grad = None if factor is None or parameter.grad is None else parameter.grad * factor

    return change


# For each round, the factor of the gradients of layers 2 and 4 on rank 0 and on rank 1; and how many of the rounds send
# the model a second time.
LIVES: dict[str, tuple[list[tuple[float | None, float | None]], int]] = {
    "never-a-gradient": ([(None, None)] * 4, 1),
    "zero-gradients": ([(0.0, 0.0)] * 4, 1),
    "never-on-one-rank": ([(None, 1.0)] * 4, 0),
    "comes-alive-on-one-rank": ([(None, None)] * 2 + [(1.0, None)] * 2, 2),
    "comes-alive-on-the-other": ([(0.0, 0.0)] * 2 + [(0.0, 1e-3)] * 2, 2),
    "comes-alive-on-all": ([(None, None)] * 2 + [(1.0, 1.0)] * 2, 1),
    "dies-on-one-rank-after-the-other": ([(1.0, 1.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0)], 1),
    "dead-again": ([(0.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.0, 0.0)], 2),
    "too-small": ([(1e-25, 1e-25)] * 3, 3),
    "too-large-on-one-rank": ([(1.0, 1e25), (1.0, 1.0)], 1),
}


@pytest.mark.parametrize("name", LIVES)
def test_layers_that_live_and_die(name: str, rank: int, on_both: Any, sent: list[str]) -> None:
    factors, again = LIVES[name]

    def scenario() -> tuple[list[dict[str, Tensor]], int]:
        run, states = Run(), []
        run.step()
        sent.clear()
        for factor in factors:
            run.step(scaled((2, 4), factor[rank]))
            states.append(run.state)
        return states, sent.count("bucket")

    (ones, seconds), (others, _) = on_both(scenario)
    wrong = [difference(one, other, rounds=5) for one, other in zip(ones, others, strict=True)]
    assert wrong == [{}] * len(factors)
    assert from_all(seconds) == [again] * hvd.size()


def test_without_any_gradient_the_plain_mean_is_taken_and_soon_in_one_exchange(on_both: Any, sent: list[str]) -> None:
    def scenario() -> tuple[dict[str, Tensor], list[str]]:
        run = Run(averaging="grawa")
        sent.clear()
        for _ in range(4):
            run.step(scaled(tuple(range(6)), 0.0))
        return run.state, list(sent)

    (one, names), (other, _) = on_both(scenario)
    assert difference(one, other, rounds=4) == {}
    assert set(one["weights"].flatten().tolist()) == {0.5}
    # An arrival, a round that could not divide, three that could.
    assert names == ["companion", "companion", "bucket", "companion", "companion", "companion"]


@pytest.mark.parametrize(
    "options",
    [
        {"averaging": LGRAWA(floor=0.5)}, {"averaging": OfTheUser()}, {"overlap": 1, "period": 2},
        {"fragments": 2, "period": 2}, {"model": "of two types"},
    ],
    ids=["floor", "of-the-user", "overlap", "fragments", "two-types"],
)  # fmt: skip
def test_what_cannot_be_divided_afterwards_never_travels_beside_the_rows(
    options: dict[str, Any], sent: list[str]
) -> None:
    of_two_types = (options := dict(options)).pop("model", None) is not None
    run = Run(tensors(second=torch.float64) if of_two_types else None, **options)
    for _ in range(4):
        run.step()
    run.optimizer.state_dict()
    assert from_all(set(sent)) == [AFTER] * hvd.size()


def poisoned(where: str, value: float) -> Callable[[list[Tensor]], None]:
    def change(parameters: list[Tensor]) -> None:
        target = parameters[3] if where == "parameters" else parameters[3].grad
        assert target is not None
        target[0] = value

    return change


@pytest.mark.parametrize("outer_momentum", [0.0, 0.5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["parameters", "gradients"])
def test_a_worker_that_diverged_leaks_nowhere_and_becomes_the_centre(
    where: str, value: float, outer_momentum: float, rank: int, on_both: Any, sent: list[str]
) -> None:
    def scenario() -> tuple[list[dict[str, Tensor]], list[str]]:
        run, states = Run(outer_momentum=outer_momentum), []
        run.step()
        sent.clear()
        run.step(poisoned(where, value) if rank == 1 else lambda parameters: None)
        states.append(run.state)
        if rank == 1:
            center = run.optimizer.center
            is_center = [torch.equal(p, center[name]) for name, p in run.model.named_parameters()]
            states[0]["is the centre"] = torch.tensor(is_center).float()
        run.step()
        return [*states, run.state], list(sent)

    (ones, names), (others, _) = on_both(scenario)
    assert [difference(one, other, rounds=3) for one, other in zip(ones, others, strict=True)] == [{}, {}]
    assert names == ["companion"] * 2
    assert ones[0]["weights"][1].tolist() == [0.0] * 6 and ones[0]["weights"][0].tolist() == [1.0] * 6
    assert all(tensor.isfinite().all() for state in ones for name, tensor in state.items() if name != "scores")
    assert rank == 0 or bool(ones[0]["is the centre"].all())


@pytest.mark.parametrize("where", ["parameters", "gradients"])
def test_when_all_diverged_all_say_so_and_can_go_on(where: str, sent: list[str]) -> None:
    run = Run()
    run.step()
    good = copies(run.model)
    told = errors(lambda: run.step(poisoned(where, math.nan)))
    with torch.no_grad():
        for parameter, saved in zip(run.model.parameters(), good, strict=True):
            parameter.copy_(saved)
    sent.clear()
    run.step()
    assert [kind for kind, _ in told] == ["AllWorkersDivergedError"] * hvd.size()
    assert sent == ["companion"]
    assert equal_on_all_ranks(run.optimizer.center.values())
    assert all(tensor.isfinite().all() for tensor in run.optimizer.center.values())


def test_consensus_beside_the_rows_leaves_out_a_worker_that_diverged(rank: int, sent: list[str]) -> None:
    run = Run()
    run.step()
    run.drift()
    if rank == 1:
        with torch.no_grad():
            next(run.model.parameters()).fill_(math.nan)
    own = copies(run.model)
    healthy = from_all([tensor.tolist() for tensor in own])[0]
    sent.clear()
    with run.optimizer.consensus():
        inside = [tensor.tolist() for tensor in run.model.parameters()]
    assert inside == healthy
    assert sent == ["companion"]
    assert all(torch.equal(a, b) for a, b in zip(own[1:], copies(run.model)[1:], strict=True))


def test_ranks_with_fewer_batches_join_and_come_back(rank: int, on_both: Any, sent: list[str]) -> None:
    """Who was away has missed rounds: one round in two exchanges, and from then on they know the same again."""

    def scenario() -> tuple[list[dict[str, Tensor]], list[str]]:
        run, states = Run(), []
        for _ in range(2 + 2 * rank):
            run.step()
        states.append(run.state)
        hvd.join()
        run.steps = 10
        sent.clear()
        for _ in range(3):
            run.step()
            states.append(run.state)
        return states, list(sent)

    (ones, names), (others, _) = on_both(scenario)
    assert [difference(one, other, rounds=7) for one, other in zip(ones, others, strict=True)] == [{}] * 4
    assert from_all(names) == [["companion", "bucket", "companion", "companion"]] * hvd.size()


def test_a_load_while_the_other_rank_is_away_does_not_make_them_think_they_know_the_same(rank: int) -> None:
    """Rank 1 is away; rank 0 loads, and meets itself alone as often as it had met rank 1. What they then know of dead
    layers differs, and must not decide whether a second sum is made."""
    run = Run()
    everything = tuple(range(6))
    for _ in range(2):
        run.step(scaled(everything, 0.0))
    if rank == 0:
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        for _ in range(2):
            run.step()
    hvd.join()
    run.steps = 10
    for _ in range(2):
        run.step(scaled(everything, 0.0))
    assert equal_on_all_ranks(run.optimizer.center.values())
    assert set(run.optimizer.last_round.weights.flatten().tolist()) == {0.5}


def test_a_late_first_rank_and_a_load_on_one_rank_alone(rank: int, on_both: Any, sent: list[str]) -> None:
    def scenario() -> tuple[dict[str, Tensor], list[str]]:
        run = Run(outer_momentum=0.5)
        if rank == 0:
            run.step()
            run.step()
        hvd.join()
        run.steps = 5
        for _ in range(2):
            run.step()
        hvd.join()  # the one that came late is behind by a step
        run.steps = 10
        if rank == 0:
            run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        run.step()
        sent.clear()
        for _ in range(2):
            run.step()
        return run.state, list(sent)

    (one, names), (other, _) = on_both(scenario)
    assert difference(one, other, rounds=7) == {}
    assert from_all(names) == [["companion"] * 2] * hvd.size()


def test_scores_that_raise_and_ranks_out_of_step_leave_nothing_behind(rank: int, sent: list[str]) -> None:
    failing = [False]

    def scores() -> None:
        if failing[0]:
            raise KeyError("no batch")

    run = Run(scores=scores)
    run.step()
    failing[0] = rank == 1
    raised = errors(run.step)
    failing[0] = False
    run.step()

    def parted() -> None:
        if rank == 0:
            run.step()
        else:
            with run.optimizer.consensus():
                pass

    apart = errors(parted)
    if rank == 1:
        run.optimizer._worker.steps += 1
    sent.clear()
    run.step()
    assert [kind for kind, _ in raised] == ["ScoresError", "KeyError"]
    assert [kind for kind, _ in apart] == ["RanksOutOfStepError"] * hvd.size()
    assert sent[0] == "companion"
    assert equal_on_all_ranks(run.optimizer.center.values())


def wider(rank: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4 + rank), nn.Linear(4, 2))


def of_more_tensors(rank: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(3, 3) for _ in range(2 + rank)])


def of_more_buckets(rank: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).to(torch.float64 if rank else torch.float32))


def too_large_here(rank: int) -> nn.Module:
    return nn.Linear(LARGEST // 4 if rank else 3, 1)


@pytest.mark.parametrize("make", [wider, of_more_tensors, of_more_buckets, too_large_here])
def test_models_that_differ_are_refused_and_equal_ones_then_average(
    make: Callable[[int], nn.Module], rank: int, sent: list[str]
) -> None:
    """What one rank sent beside its row, and others did not, must not meet what is sent later."""
    told = errors(lambda: Run(make(rank)).step())
    run = Run()
    run.step()
    run.step()
    assert [kind for kind, _ in told] == ["ValueError"] * hvd.size()
    assert sent[-2:] == ["companion"] * 2
    assert equal_on_all_ranks(run.optimizer.center.values())


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("begun", [False, True], ids=["at-the-start", "in-a-run"])
def test_a_model_put_right_on_one_rank_averages_with_the_same_optimizer(begun: bool, times: int, rank: int) -> None:
    """The rank that was right all along keeps its companion, the other makes a new one: their names must agree."""
    run = Run(nn.Sequential(*[nn.Linear(3, 3) for _ in range(3)]))
    lacking = list(run.model[2].parameters())  # type: ignore[index]
    if begun:
        run.step()
    if rank == 1:
        for parameter in lacking:
            parameter.data = parameter.data.double()
    told = [errors(run.step) for _ in range(times)]
    if rank == 1:
        for parameter in lacking:
            parameter.data, parameter.grad = parameter.data.float(), None
    run.step()
    assert [[kind for kind, _ in once] for once in told] == [["ValueError"] * hvd.size()] * times
    assert equal_on_all_ranks(run.optimizer.center.values())


def test_a_model_that_grows_too_large_travels_after_the_rows(
    on_both: Any, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(4 * parameter.numel() for parameter in tensors().parameters())

    def scenario() -> tuple[dict[str, Tensor], set[str], set[str]]:
        if grawa_hvd.companion.LARGEST:
            monkeypatch.setattr(grawa_hvd.companion, "LARGEST", size)
        run = Run(outer_momentum=0.5)
        sent.clear()
        run.step()
        before = set(sent)
        run.model.append(nn.Linear(2, 2))  # type: ignore[operator]
        run.optimizer.add_param_group({"params": list(run.model[-1].parameters())})  # type: ignore[index]
        sent.clear()
        run.step()
        return run.state, before, set(sent)

    (one, *names), (other, *_) = on_both(scenario)
    assert difference(one, other, rounds=2) == {}
    assert names == [BESIDE, AFTER]


def test_two_optimizers_in_turn_and_one_within_the_others_consensus(on_both: Any) -> None:
    def scenario() -> dict[str, Tensor]:
        runs = [Run(averaging="mgrawa", pull=1.0), Run(tensors(torch.float64), period=2)]
        for step in range(4):
            runs[step % 2].step()
            runs[1 - step % 2].step()
            with runs[0].optimizer.consensus():
                runs[1].step()
        return {f"{number} {name}": value for number, run in enumerate(runs) for name, value in run.state.items()
                if name not in ("weights", "scores")}  # fmt: skip

    one, other = on_both(scenario)
    assert difference(one, other, rounds=8) == {}


def test_in_process_sets(rank: int, on_both: Any, sent: list[str]) -> None:
    """Each alone in a set of its own, where nobody is to average with, beside the set of all."""
    alone = [hvd.add_process_set([member]) for member in range(hvd.size())]
    try:

        def scenario() -> dict[str, Tensor]:
            single, run = Run(process_set=alone[rank]), Run()
            for _ in range(3):
                single.step()
                run.step()
            assert single.optimizer.rounds == 0
            return run.state

        one, other = on_both(scenario)
    finally:
        for process_set in alone:
            hvd.remove_process_set(process_set)
    assert difference(one, other, rounds=3) == {}
    assert sent.count("companion") == 4  # an arrival and three rounds, of one optimizer, on one of the paths


NUMBERS = [0.0, 1.0, -1 / 3, 5e-324, 2.0**53 - 1, 1.7e308, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, None], ids=["float32", "float64", "alone"])
def test_rows_arrive_bit_by_bit_beside_whatever_is_summed(dtype: torch.dtype | None, rank: int, size: int) -> None:
    communicator = Communicator()
    row = torch.tensor(NUMBERS, dtype=torch.float64) if rank == size - 1 else torch.full((len(NUMBERS),), 0.1 + rank)
    row, wire = row.double(), None
    if dtype is not None:
        wire = torch.full((7 + communicator.room(len(row), dtype),), 1.5, dtype=dtype)
    rows = communicator.gather(row, "test.rows", wire)
    bits = [row.tolist() for row in rows.view(torch.int64)]
    assert bits == from_all(row.view(torch.int64).tolist())
    assert wire is None or wire[:7].tolist() == [1.5 * size] * 7


def test_rows_of_different_length_are_an_error_on_every_rank(rank: int) -> None:
    communicator = Communicator()
    row = torch.zeros(3 + (rank == 1), dtype=torch.float64)
    wire = torch.zeros(7 + communicator.room(len(row), torch.float32))
    assert [kind for kind, _ in errors(lambda: communicator.gather(row, "test.rows", wire))] == [
        "MismatchedRowsError"
    ] * hvd.size()
