"""What tests do to workers: a list in a file, of which docs/reliability.md has a table.

A test says so by the mark `fault(kind)`, with a name of KINDS, once for each of its cases; a test that has a launcher
of its own, by the fixture `fault`. A fault went as promised if the test has passed, on all ranks. Before a test begins
it is noted as one that did not: of a test that hangs, or whose process dies, that stays.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

KINDS = {
    "diverged": "NaN or Inf in gradients, parameters or state of some workers: left out of the average",
    "all diverged": "NaN or Inf on all workers: the same error on all",
    "overflow": "overflow under GradScaler on one worker: its update alone is skipped",
    "gradients": "gradients that are zero, missing, vanishing or huge: steps and rounds go on",
    "data": "workers that run out of data: the others go on without them",
    "late": "a worker that comes late, or starts anew: it takes part from the next round on",
    "differ": "a worker with another model, dtype, policy, setting or shared batch: the same error on all",
    "start": "a worker with other initial parameters: a warning on all",
    "order": "a worker with parameters or optimizers in another order: they meet by name",
    "astray": "a worker that loads a checkpoint alone, or calls something else: the same error on all",
    "raises": "an exception or a wrong value from a worker's callable: an error there, and where others need it",
    "torn": "SIGKILL while a checkpoint is written: the earlier one stays whole",
    "checkpoint": "a checkpoint that a worker cannot write, or that is damaged or missing: an error on all",
}

Note = Callable[[str, str], None]
NOTED = pytest.StashKey[list[dict[str, str]]]()
PASSED = pytest.StashKey[bool | None]()
# A launch by tests/parallel/run.py: its launcher and number of ranks, of which the first one notes for all.
WORLD = os.environ.get("GRAWA_TEST_WORLD")
FIRST = os.environ.get("HOROVOD_RANK", os.environ.get("RANK", "0")) == "0"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=Path, metavar="FILE", help="note there which faults went as promised")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"fault(kind): what each case does to workers, one of {', '.join(KINDS)}")


def write(item: pytest.Item, survived: bool | None) -> None:
    """Note how the faults of a test went, in the place of what was noted of it earlier; None: it was skipped."""
    path, noted = item.config.getoption("--faults"), item.stash[NOTED]
    if path is None or not noted or not FIRST:
        return
    name = f"{item.nodeid} under {WORLD}" if WORLD else item.nodeid
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # of pytest-xdist's workers one at a time
        file.seek(0)
        found = json.loads(file.read() or "{}")
        found.pop(name, None)
        if survived is not None:
            found[name] = [{**one, "survived": survived} for one in noted]
        file.truncate(0)
        json.dump(dict(sorted(found.items())), file)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Note:
    """Say what a test does to workers, and under which launcher."""

    def note(kind: str, under: str) -> None:
        request.node.stash[NOTED].append({"kind": kind, "under": under})
        write(request.node, False)

    return note


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    under = WORLD or "workers in one process"
    item.stash[NOTED] = [{"kind": KINDS[mark.args[0]], "under": under} for mark in item.iter_markers("fault")]
    item.stash[PASSED] = False
    write(item, False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    if report.skipped:
        item.stash[PASSED] = None
    elif report.when == "call":
        item.stash[PASSED] = report.passed
    elif report.when == "teardown":  # where ranks tell each other of their failures
        passed = item.stash[PASSED]
        write(item, passed and report.passed)
    return report
