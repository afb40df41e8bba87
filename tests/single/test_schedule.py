"""When rounds are due: of which fragment, and among whom."""

from __future__ import annotations

import pytest

from grawa_hvd.schedule import Due, Schedule


def cycle(schedule: Schedule) -> list[Due | None]:
    """What is due after each step of a cycle."""
    return [schedule.due(since) for since in range(1, schedule.period + 1)]


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
    assert Schedule(4, 2).due(0) == Schedule(4, 2).due(4) == Due(1)
