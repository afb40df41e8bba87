"""The ranks of a parallel test keep in step: each test starts alike on all of them and ends with an exchange.

Under `run.py`, each rank also writes down where it is and what failed, for a test that hangs takes the ranks' own
output with it.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import peers
import pytest
import torch

SECONDS_PER_TEST = 150  # the slowest take 10 s where four ranks have two cores, at times three times that
RANK, SIZE = peers.rank(), peers.size()
WORLDS = {2, 4}  # the sizes in which `make test` runs each test that is marked for them
NOTES = os.environ.get("GRAWA_TEST_NOTES")
FAILED = pytest.StashKey[bool]()


def note(name: str, text: str, mode: str = "w") -> None:
    """Leave a note for run.py, which reads what the ranks noted if they do not come to their end."""
    if NOTES:
        with Path(NOTES, f"{name}.{RANK}").open(mode) as file:
            file.write(text)


def pytest_configure(config: pytest.Config) -> None:
    if NOTES:
        # The rank whose test times out ends the job, and the launcher the other ranks: one of those may be what hung.
        stacks = Path(NOTES, f"stacks.{RANK}").open("w")  # noqa: SIM115 (open until the process ends)
        faulthandler.register(signal.SIGTERM, file=stacks, chain=True)
    config.addinivalue_line("markers", "ranks(count, min): the world size, or the smallest one, that the test needs")
    config.addinivalue_line("markers", "horovod: the test is of what Horovod alone does")
    config.addinivalue_line("markers", "torch_distributed: the test is of what torch.distributed alone does")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS_PER_TEST, method="thread"))
        if item.get_closest_marker("horovod") and item.get_closest_marker("torch_distributed"):
            pytest.exit(
                f"{item.nodeid} is skipped over either transport, and can never fail", pytest.ExitCode.USAGE_ERROR
            )
        if peers.TRANSPORT == "torch" and item.get_closest_marker("horovod"):
            item.add_marker(pytest.mark.skip(reason=peers.OF_HOROVOD))
        if peers.TRANSPORT == "horovod" and item.get_closest_marker("torch_distributed"):
            item.add_marker(pytest.mark.skip(reason="is of what torch.distributed does; this run is over Horovod"))
        marker = item.get_closest_marker("ranks")
        if marker is None:
            continue
        wanted = {*marker.args, *marker.kwargs.values()}
        if not wanted <= WORLDS:  # it would be skipped everywhere, and so never fail
            pytest.exit(f"{item.nodeid} needs {wanted} ranks; `make test` starts {WORLDS}", pytest.ExitCode.USAGE_ERROR)
        if marker.args and marker.args[0] != SIZE:
            item.add_marker(pytest.mark.skip(reason=f"needs {marker.args[0]} ranks, not {SIZE}"))
        elif marker.kwargs.get("min", 1) > SIZE:
            item.add_marker(pytest.mark.skip(reason=f"needs {marker.kwargs['min']} ranks or more, not {SIZE}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
        note("failures", f"{report.nodeid} ({report.when})\n{report.longreprtext}\n\n", mode="a")
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    note("place", "")
    note("exit", str(int(exitstatus)))
    # At the first exit code that is not 0 the launcher kills the other ranks, before they have printed what failed.
    if NOTES and exitstatus == pytest.ExitCode.TESTS_FAILED:
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(scope="session", autouse=True)
def world() -> Iterator[None]:
    peers.start()
    yield
    peers.stop()


@pytest.fixture
def rank() -> int:
    return RANK


@pytest.fixture
def size() -> int:
    return SIZE


@pytest.fixture(autouse=True)
def in_step(world: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed every rank alike; afterwards wait for all ranks, so that no collective meets one of the next test.

    A test that failed elsewhere fails here too: what rank 0 prints is then true of all ranks.
    """
    node = request.node
    note("place", f"in {node.nodeid}")
    torch.manual_seed(0)
    random.seed(0)
    yield
    failed = bool(node.stash.get(FAILED, False))
    note("place", f"{'failed in' if failed else 'done with'} {node.nodeid}, waiting for the other ranks")
    flags = torch.zeros(SIZE)
    flags[RANK] = float(failed)
    try:
        peers.sum_(flags, f"end of {node.nodeid}")
    except Exception as error:  # whatever it is, no test after this one could say anything
        pytest.exit(f"the ranks came out of step in {node.nodeid}: {error}", returncode=pytest.ExitCode.TESTS_FAILED)
    elsewhere = [rank for rank, flag in enumerate(flags.tolist()) if flag]
    if elsewhere and not failed:
        pytest.fail(f"failed on rank {', '.join(map(str, elsewhere))}", pytrace=False)
