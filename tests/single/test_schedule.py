"""When rounds are due: of which fragment, and among whom."""

from __future__ import annotations

from typing import Any

import pytest
from workers import Learner

import grawa_hvd
from grawa_hvd.rounds.rows import Progress
from grawa_hvd.rounds.schedule import Due, Schedule
from grawa_hvd.transport.local import LocalTransport, run_workers


def cycle(schedule: Schedule) -> list[Due | None]:
    """What is due after each step of a cycle."""
    period = schedule.period
    assert isinstance(period, int)
    return [schedule.due(schedule.warm_up + since, since, period) for since in range(1, period + 1)]


@pytest.mark.parametrize("period", [1, 2, 32])
def test_one_piece_has_its_round_at_the_end(period: int) -> None:
    assert cycle(Schedule(period)) == [None] * (period - 1) + [Due()]


@pytest.mark.parametrize("period", [1, 2, 3, 5, 7, 32])
@pytest.mark.parametrize("fragments", [2, 3, 5, 7, 32])
def test_each_fragment_has_one_round_a_cycle_at_its_share_of_it(period: int, fragments: int) -> None:
    if fragments > period:
        pytest.skip("there are no more fragments than steps")
    due = cycle(Schedule(period, fragments))
    steps = [(step, found.fragment) for step, found in enumerate(due, start=1) if found is not None]
    expected = [
        (next(s for s in range(1, period + 1) if s * fragments >= (f + 1) * period), f) for f in range(fragments)
    ]
    assert steps == expected
    assert steps[-1] == (period, fragments - 1)
    gaps = [after - before for (before, _), (after, _) in zip([(0, 0), *steps], steps, strict=False)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("period", "fragments", "local_period", "expected"),
    [
        (6, 1, 2, [2, 4]),
        (6, 1, 1, [1, 2, 3, 4, 5]),
        (5, 1, 3, [3]),
        (6, 2, 1, [1, 2, 4, 5]),
        (6, 3, 2, []),
        (4, 4, 1, []),
    ],
)
def test_hosts_average_where_no_other_round_is_due(
    period: int, fragments: int, local_period: int, expected: list[int]
) -> None:
    due = cycle(Schedule(period, fragments, local_period))
    assert [step for step, found in enumerate(due, start=1) if found is not None and found.within_host] == expected
    assert sum(found is not None and not found.within_host for found in due) == fragments
    assert all(found.fragment is None for found in due if found is not None and found.within_host)


def test_nought_stands_for_the_end_of_a_cycle() -> None:
    assert Schedule(4, 2).due(8, 0, 4) == Schedule(4, 2).due(4, 4, 4) == Due(1)


@pytest.mark.parametrize("warm_up", [1, 5])
def test_all_average_after_each_step_of_the_warm_up_and_cycles_begin_after_it(warm_up: int) -> None:
    schedule = Schedule(3, warm_up=warm_up)
    assert [schedule.due(step, 1, 3) for step in range(1, warm_up + 1)] == [Due(warm_up=True)] * warm_up
    assert cycle(schedule) == [None, None, Due()]


def test_a_period_that_is_a_function_is_asked_with_the_progress() -> None:
    schedule = Schedule(lambda progress: 2 + progress.rounds)
    assert schedule.length(Progress(steps=6, rounds=3)) == 5
    assert schedule.due(11, 5, 5) == Due()
    assert schedule.due(11, 2, 5) is None


@pytest.mark.parametrize(("schedule", "overlap", "least"), [
    (Schedule(lambda progress: 1), 0, 1), (Schedule(lambda progress: 1, fragments=3), 0, 3),
    (Schedule(lambda progress: 1, local_period=4), 0, 5), (Schedule(lambda progress: 1), 6, 7),
])  # fmt: skip
def test_a_cycle_has_room_for_all_that_is_due_in_it(schedule: Schedule, overlap: int, least: int) -> None:
    schedule.check(least, overlap)
    with pytest.raises(
        ValueError, match=f"period must return an integer of at least {least}, but returned {least - 1}"
    ):
        schedule.check(least - 1, overlap)


@pytest.mark.parametrize("answer", [None, "3", 2.5])
@pytest.mark.fault("raises")
def test_a_period_that_fails_on_one_worker_is_told_to_all(answer: Any) -> None:
    def work(transport: LocalTransport) -> None:
        learner = Learner(transport, period=lambda _: answer if transport.rank == 1 else 3)
        error, text = {
            0: (grawa_hvd.ScoresError, "the scores or period callable raised on rank 1"),
            1: (ValueError, "period must return an integer, but returned"),
        }[transport.rank]
        with pytest.raises(error, match=text):
            learner.step()

    run_workers(2, work)
