"""Rounds that the user asks for, outside the period."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workers import Learner, errors, learn

from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS = 3
EPSILON = 2.0**-52


def alike(results: list[Any]) -> bool:
    return all(torch.equal(result, results[0]) for result in results)


def test_a_round_takes_place_at_once_and_the_cycle_begins_anew() -> None:
    def work(learner: Learner) -> tuple[Any, Any, list[int]]:
        learner.step(3)
        before = learner.flat()
        learner.optimizer.round_now()
        after = learner.flat()
        learner.step(9)
        return before, after, learner.rounds()

    before, after, rounds = zip(*learn(WORKERS, work), strict=True)
    assert list(rounds) == [[3, 7, 11]] * WORKERS
    assert alike(list(after))
    # Three products and two sums of numbers below 4.
    torch.testing.assert_close(after[0], torch.stack(before).mean(dim=0), rtol=0, atol=8 * WORKERS * EPSILON)


def test_rounds_under_way_are_finished_first_and_this_one_at_once() -> None:
    def work(learner: Learner) -> tuple[Any, int, list[int]]:
        learner.step(5)
        assert learner.optimizer.rounds == 0
        learner.optimizer.round_now()
        return learner.flat(), learner.optimizer.rounds, learner.rounds()

    flat, rounds, steps = zip(*learn(WORKERS, work, overlap=3), strict=True)
    assert alike(list(flat))
    assert list(rounds) == [2] * WORKERS and list(steps) == [[4, 5]] * WORKERS


@pytest.mark.parametrize("steps", [3, 4])
def test_it_is_of_the_whole_model_where_rounds_are_of_fragments(steps: int) -> None:
    """At the end of a cycle too: the other fragments have moved since their rounds."""

    def work(learner: Learner) -> tuple[Any, list[str]]:
        learner.step(steps)
        learner.optimizer.round_now()
        return learner.flat(), learner.reports[-1].layer_names

    flat, layers = zip(*learn(WORKERS, work, fragments=2), strict=True)
    assert alike(list(flat))
    assert list(layers) == [["0", "1"]] * WORKERS


@pytest.mark.parametrize("averaging", ["uniform", "diloco", "lgrawa"])
def test_where_nobody_has_moved_nothing_is_done(averaging: str) -> None:
    def work(learner: Learner) -> bool:
        learner.optimizer.round_now()
        assert learner.optimizer.rounds == 0
        learner.step(4)
        before, center = learner.flat(), learner.center()
        learner.optimizer.round_now()
        learner.optimizer.round_now()
        return learner.rounds() == [4] and torch.equal(before, learner.flat()) and torch.equal(center, learner.center())

    assert learn(WORKERS, work, averaging=averaging) == [True] * WORKERS


def test_epochs_of_different_length_end_in_one_round_and_begin_alike() -> None:
    def work(learner: Learner) -> tuple[Any, list[int]]:
        learner.step(2 + learner.rank)
        learner.optimizer.round_now()
        flat = learner.flat()
        learner.step(5)
        return flat, learner.rounds()

    flat, rounds = zip(*learn(WORKERS, work, period=5), strict=True)
    assert alike(list(flat))
    assert list(rounds) == [[2, 7], [3, 8], [4, 9]]


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        (("step", "round_now"), "rank 0 came to a round when rank 1 called round_now(): the ranks took different"),
        (("consensus", "round_now"), "rank 1 called round_now() when rank 0 entered consensus(): the ranks took"),
    ],
)
@pytest.mark.fault("astray")
def test_ranks_at_different_places_get_one_error(calls: tuple[str, str], told: str) -> None:
    def work(learner: Learner) -> None:
        learner.step(3)
        call = calls[learner.rank]
        if call == "step":
            learner.step()
        elif call == "round_now":
            learner.optimizer.round_now()
        else:
            with learner.optimizer.consensus():
                raise AssertionError("the block is not entered")

    found = errors(2, work)
    assert found[0] == found[1]
    assert found[0][0] == "RanksOutOfStepError" and found[0][1].startswith(told)


def test_a_period_that_is_a_function_is_asked_for_the_cycle_that_begins() -> None:
    def work(learner: Learner) -> list[int]:
        learner.step(3)
        learner.optimizer.round_now()
        learner.step(12)
        return learner.rounds()

    # Cycles of 8 steps that begin before step 2, of 5 after it.
    assert learn(2, work, period=lambda progress: 8 if progress.steps < 2 else 5) == [[3, 8, 13]] * 2


def test_after_a_checkpoint_the_first_thing_may_be_a_round() -> None:
    def work(transport: LocalTransport) -> bool:
        learner, loaded = Learner(transport), Learner(transport)
        learner.step(6)
        loaded.optimizer.load_state_dict(learner.optimizer.state_dict())
        for parameter, value in zip(loaded.model, learner.parameters(), strict=True):
            parameter.data.copy_(value)
        loaded.steps = learner.steps
        for one in (learner, loaded):
            one.optimizer.round_now()
            one.step(5)
        return loaded.rounds() == learner.rounds()[1:] == [6, 10] and torch.equal(loaded.flat(), learner.flat())

    assert run_workers(2, work) == [True] * 2


@pytest.mark.parametrize("first", ["step", "round_now"])
@pytest.mark.fault("late")
def test_one_who_arrives_takes_part_in_it_and_begins_the_cycle_with_the_others(first: str) -> None:
    def work(transport: LocalTransport) -> tuple[list[int], Any]:
        learner = Learner(transport, averaging="lgrawa")
        learner.step(6)
        if transport.rank == 2:  # as a worker that an elastic job has started anew
            learner = Learner(transport, averaging="lgrawa")
        if transport.rank < 2 or first == "round_now":
            learner.optimizer.round_now()
        learner.step(4)
        return learner.rounds(), learner.flat()

    rounds, flat = zip(*run_workers(WORKERS, work), strict=True)
    assert list(rounds) == [[4, 6, 10], [4, 6, 10], [6, 10]]
    assert alike(list(flat))


@pytest.mark.fault("data")
def test_those_who_have_left_are_not_waited_for() -> None:
    def work(transport: LocalTransport) -> Any:
        learner = Learner(transport)
        learner.step(3)
        before = learner.flat()
        if transport.rank == 2:
            transport.leave()
            return before, None
        learner.optimizer.round_now()
        return before, learner.flat()

    before, after = zip(*run_workers(WORKERS, work), strict=True)
    assert torch.equal(after[0], after[1])
    torch.testing.assert_close(after[0], (before[0] + before[1]) / 2, rtol=0, atol=8 * EPSILON)


def test_the_state_of_the_optimizer_takes_part() -> None:
    def work(learner: Learner) -> Any:
        learner.step(3)
        learner.optimizer.round_now()
        return torch.cat([learner.optimizer.state[p]["momentum_buffer"] for p in learner.model])

    def wrapped(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    assert alike(learn(2, work, wrapped=wrapped, optimizer_state="average"))


def test_one_worker_has_nobody_to_average_with() -> None:
    def work(learner: Learner) -> int:
        learner.step(3)
        learner.optimizer.round_now()
        return int(learner.optimizer.rounds)

    assert learn(1, work) == [0]
