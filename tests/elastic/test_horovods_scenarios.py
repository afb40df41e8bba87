"""What Horovod's own elastic tests put a script through (0.28.1, test/integration/elastic_common.py), with each class.

The scenarios are Horovod's, `hosts_added_and_removed` and `reset_limit`; the host of rank 0 is one that leaves.
"""

from __future__ import annotations

from typing import Any

import pytest
from elastic_job import Outcome, Plan, run
from faults import Note
from horovod.runner.elastic.constants import RESET_LIMIT_EXCEEDED_MESSAGE

# The optimizer's options, and whose elastic state.
CLASSES = {
    "horovod's": (None, "stock"),
    "ours": ({"averaging": "lgrawa", "period": 3}, "own"),
    "our optimizer in horovod's state": ({"averaging": "lgrawa", "period": 3}, "stock"),
}


def plan(kind: str, slots: int, arguments: list[str] | None = None) -> Plan:
    """30 steps: on one host, from step 10 on two, from step 20 on the second alone."""
    options, state = CLASSES[kind]
    first, second = f"localhost:{slots}", f"127.0.0.1:{slots}"
    events = [
        {"kind": "hosts", "step": 9, "hosts": [first, second]}, {"kind": "hosts", "step": 19, "hosts": [second]},
    ]  # fmt: skip
    return Plan(
        [first], events, steps=30, options=options, state=state, arguments=arguments or [],
        gloo_timeout=90,  # nobody dies, and a new worker may be long in coming
    )  # fmt: skip


def first_at(outcome: Outcome, step: int) -> list[dict[str, Any]]:
    """What the workers that made a step saw after it."""
    found = (one for worker in outcome.workers for one in worker["seen"])
    return sorted((one for one in found if (one["moment"], one["step"]) == ("step", step)), key=lambda one: one["rank"])


@pytest.mark.parametrize("slots", [2, 1])
@pytest.mark.parametrize("kind", CLASSES)
def test_hosts_added_and_removed(kind: str, slots: int, fault: Note) -> None:
    if kind != "horovod's":
        fault("a host is added", "elastic horovodrun")
        fault("the host of rank 0 is taken away", "elastic horovodrun")
    outcome = run(plan(kind, slots))
    assert outcome.code == 0, outcome.output[-4000:]
    assert outcome.left == []
    where = {step: [(one["host"], one["size"]) for one in first_at(outcome, step)] for step in (9, 19, 30)}
    assert where[9] == [("localhost", slots)] * slots
    assert where[19] == [("localhost", 2 * slots)] * slots + [("127.0.0.1", 2 * slots)] * slots
    assert where[30] == [("127.0.0.1", slots)] * slots


@pytest.mark.parametrize("kind", CLASSES)
def test_reset_limit(kind: str, fault: Note) -> None:
    if kind != "horovod's":
        fault("hosts change more often than --reset-limit says: the job ends with an error", "elastic horovodrun")
    outcome = run(plan(kind, 2, ["--reset-limit", "1"]))
    assert outcome.code != 0
    assert RESET_LIMIT_EXCEEDED_MESSAGE.format(1) in outcome.output, outcome.output[-4000:]
    assert outcome.left == []
    outcome = run(plan(kind, 2, ["--reset-limit", "2"]))
    assert outcome.code == 0, outcome.output[-4000:]
    assert outcome.left == []
    assert len(outcome.ends()) == 2
