"""Workers come, go and die under `horovodrun --host-discovery-script`, and the run goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from elastic_job import Outcome, Plan, run
from faults import Note

TWO_HOSTS = ["localhost:2", "127.0.0.1:2"]
# Of M summands each rounds once, the division once, in float32; parameters are below 1.
TOLERANCE = 4 * 2.0**-24


def agreed(outcome: Outcome, workers: int, plan: Plan) -> list[dict[str, Any]]:
    """What the workers saw at their ends, once it is clear that they agree and that nothing is left behind."""
    ends = outcome.ends()
    assert outcome.code == 0, outcome.output[-4000:]
    assert outcome.left == []
    assert [one["size"] for one in ends] == [workers] * workers
    assert {one["step"] for one in ends} == {plan.steps}
    assert {one["rounds"] for one in ends} == {plan.steps // plan.options["period"]}
    assert all(one["center"] == ends[0]["center"] for one in ends)
    return ends


def at(outcome: Outcome, moment: str, step: int, size: int) -> list[list[float]]:
    """The parameters of all workers at a step, in a world of so many."""
    found = (one for worker in outcome.workers for one in worker["seen"])
    return [one["parameters"] for one in found if (one["moment"], one["step"], one["size"]) == (moment, step, size)]


def assert_all_start_from_the_mean(outcome: Outcome, step: int, before: int, after: int, survivors: int) -> None:
    starts = at(outcome, "start", step, after)
    lasts = [
        one["parameters"]
        for worker in outcome.workers
        if any(one["moment"] == "end" for one in worker["seen"])
        for one in worker["seen"]
        if (one["moment"], one["step"], one["size"]) == ("step", step, before)
    ]
    assert len(starts) == after
    assert len(lasts) == survivors
    assert all(start == starts[0] for start in starts)
    mean = torch.tensor(lasts, dtype=torch.float64).mean(dim=0)
    assert (torch.tensor(starts[0], dtype=torch.float64) - mean).abs().max() <= TOLERANCE
    if survivors > 1:
        assert lasts[0] != lasts[1]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_new_worker_starts_from_the_mean_of_the_others_with_their_counters(momentum: float, fault: Note) -> None:
    fault("a host is added", "elastic horovodrun")
    hosts = ["localhost:2", "127.0.0.1:1"]
    plan = Plan(["localhost:2"], [{"kind": "hosts", "step": 7, "hosts": hosts}], momentum=momentum)
    outcome = run(plan)
    agreed(outcome, 3, plan)
    assert_all_start_from_the_mean(outcome, 8, before=2, after=3, survivors=2)
    new = next(worker for worker in outcome.workers if worker["seen"][0]["step"] == 8)
    assert new["seen"][0]["rounds"] == 2
    assert new["seen"][0]["center"] is not None


def test_a_worker_is_taken_away(fault: Note) -> None:
    fault("a host is taken away", "elastic horovodrun")
    plan = Plan(["localhost:2", "127.0.0.1:1"], [{"kind": "hosts", "step": 7, "hosts": ["localhost:2"]}])
    outcome = run(plan)
    agreed(outcome, 2, plan)
    # Horovod does not call sync() where workers only leave: each goes on from where it is.
    assert sorted(at(outcome, "start", 8, 2)) == sorted(
        one for one in at(outcome, "step", 8, 3) if one in at(outcome, "start", 8, 2)
    )


@pytest.mark.parametrize("kind", ["kill", pytest.param("kill in the round", marks=pytest.mark.quick)])
def test_a_worker_is_killed(kind: str, fault: Note) -> None:
    """Its host is given up, and the two of the other go on from the mean of their commits, long before the limit."""
    fault(f"SIGKILL {'in a local step' if kind == 'kill' else 'within a round'}", "elastic horovodrun")
    plan = Plan(TWO_HOSTS, [{"kind": kind, "step": 8, "rank": 0}], gloo_timeout=100)
    outcome = run(plan)
    agreed(outcome, 2, plan)
    assert_all_start_from_the_mean(outcome, 8, before=4, after=2, survivors=2)
    seen = [one for worker in outcome.workers for one in worker["seen"]]
    last = max(one["time"] for one in seen if one["size"] == 4)
    next_ = max(one["time"] for one in seen if (one["moment"], one["size"]) == ("start", 2))
    assert next_ - last < plan.gloo_timeout / 2


@pytest.mark.parametrize("then", ["CONT", "KILL"])
def test_a_worker_stands_still(then: str, fault: Note) -> None:
    """Horovod waits for it without a limit; the others go on with it, or, once it is killed, without it."""
    fault(f"SIGSTOP for longer than the limit, then SIG{then}", "elastic horovodrun")
    event = {"kind": "stop", "step": 8, "rank": 3, "seconds": 30, "then": then}
    plan = Plan(TWO_HOSTS, [event], gloo_timeout=20)
    outcome = run(plan)
    workers = {"CONT": 4, "KILL": 2}[then]
    agreed(outcome, workers, plan)
    assert_all_start_from_the_mean(outcome, 8, before=4, after=workers, survivors=workers)


def test_a_round_under_way_when_a_worker_dies_is_given_up(fault: Note) -> None:
    fault("SIGKILL within a round", "elastic horovodrun")
    options = {"averaging": "lgrawa", "period": 4, "overlap": 2, "outer_momentum": 0.5}
    events = [{"kind": "kill in the round", "step": 7, "rank": 3}]
    plan = Plan(TWO_HOSTS, events, steps=22, commit_every=5, momentum=0.9, options=options)
    outcome = run(plan)
    agreed(outcome, 2, plan)
    assert_all_start_from_the_mean(outcome, 5, before=4, after=2, survivors=2)


@pytest.mark.parametrize("change", ["added", "removed"])
def test_horovods_own_state_goes_on_as_well(change: str, fault: Note) -> None:
    fault("a host is added" if change == "added" else "a host is taken away", "elastic horovodrun")
    few, many = ["localhost:2"], ["localhost:2", "127.0.0.1:2"]
    before, after = (few, many) if change == "added" else (many, few)
    plan = Plan(before, [{"kind": "hosts", "step": 7, "hosts": after}], state="stock")
    agreed(run(plan), 4 if change == "added" else 2, plan)
