"""Which steps of a soak count, from what workers noted."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import soak_job, soak_report

PLAN = {"batch": 10, "commit_every": 2}


def log(*events: tuple[str, int]) -> list[dict[str, Any]]:
    """A worker that notes something each second, in a world of two; a step takes half of it."""
    return [
        {"kind": kind, "step": step, "time": 10.0 + second, "seconds": 0.5, "size": 2, "loss": 1.0}
        for second, (kind, step) in enumerate(events)
    ]


def numbers(steps: list[dict[str, Any]]) -> list[int]:
    return [one["step"] for one in steps]


@pytest.mark.parametrize(
    ("events", "kept", "lost", "back"),
    [
        ([("start", 0), ("step", 1), ("step", 2), ("commit", 2), ("step", 3)], [1, 2], [3], 0),  # it died
        ([("step", 1), ("commit", 1), ("step", 2), ("start", 1), ("step", 2), ("commit", 2)], [1, 2], [2], 1),
        ([("step", 1), ("commit", 1), ("start", 1), ("step", 2), ("commit", 2)], [1, 2], [], 0),  # hosts changed
        ([("step", 1), ("commit", 1), ("step", 2), ("commit", 2), ("start", 1)], [1], [2], 1),  # others were not as far
    ],
)
def test_what_is_not_committed_is_lost(
    events: list[tuple[str, int]], kept: list[int], lost: list[int], back: int
) -> None:
    found, thrown_away, set_back = soak_report.account(log(*events))
    assert (numbers(found), numbers(thrown_away), set_back) == (kept, lost, back)


def test_goodput_is_the_share_of_all_workers_time() -> None:
    one = log(("step", 1), ("step", 2), ("commit", 2), ("loss", 2), ("step", 3))
    other = log(("step", 1))
    row = soak_report.figures([one, other], [], PLAN)
    # From 9.5, when the first step began, to 14, when the last was done; two of the first worker's steps count.
    assert row["seconds"] == 4.5
    assert row["goodput"] == pytest.approx(2 * 0.5 / (2 * 4.5))
    assert row["lost"] == pytest.approx(2 * 0.5 / (2 * 4.5))
    assert row["goodput"] + row["lost"] + row["apart"] == pytest.approx(1)
    assert row["samples_that_count_per_second"] == pytest.approx(10 * 2 / 4.5)


def test_seconds_until_the_others_go_on_and_all_are_there() -> None:
    sizes = [4, 4, 3, 3, 4]
    steps = [{"time": float(time), "size": size} for time, size in enumerate(sizes)]
    fault = {"time": 0.5, "workers": 4}
    assert soak_report._until(steps, fault, 1) == 1.5
    assert soak_report._until(steps, fault, 4) == 3.5
    assert soak_report._until(steps[:4], fault, 4) is None


def test_what_must_hold_is_complained_of() -> None:
    losses = [(second, 1, 0.9**second) for second in range(20)]
    good = {"loss": losses, "set_back_at_most": 2, "exit_code": 0, "processes_left": [], "files_left": []}
    assert soak_report.complaints(good, PLAN) == []
    for change in (
        {"loss": losses[::-1]}, {"set_back_at_most": 3}, {"exit_code": 1}, {"processes_left": [7]},
        {"files_left": ["a"]},
    ):  # fmt: skip
        assert len(soak_report.complaints({**good, **change}, PLAN)) == 1


def test_faults_are_the_seeds() -> None:
    faults = soak_job.faults(3, 600, 15)
    assert faults == soak_job.faults(3, 600, 15) != soak_job.faults(4, 600, 15)
    assert all(12 <= one.after <= 18 for one in faults)
    assert {one.place for one in faults} == {"step", "round"}
    assert len({one.signal for one in faults}) == 2
