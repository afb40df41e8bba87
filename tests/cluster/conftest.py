"""A cluster to test in, where the machine allows one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import call, succeed, traces
from virtual_cluster import processes, state, system

# On a loaded machine the 12 ranks take two minutes to import PyTorch.
SECONDS_PER_TEST = 400
# Names the test run that makes clusters at the moment. A run that was killed leaves it behind, with its cluster.
RUN = Path(tempfile.gettempdir()) / "grawa-cluster-tests.pid"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Unlike a thread, which ends the whole of pytest, a signal lets the fixtures take the cluster down.
        item.add_marker(pytest.mark.timeout(SECONDS_PER_TEST, method="signal"))


@pytest.fixture(scope="session")
def namespaces() -> Iterator[None]:
    """Skips, with the reason, where this machine does not allow a cluster.

    The cluster of a test run that was killed is taken down; that of anyone else fails the tests.
    """
    try:
        system.require_root()
        system.require_namespaces()
        system.install_missing()
    except system.ClusterError as error:
        pytest.skip(str(error))
    if RUN.exists() and not Path(f"/proc/{RUN.read_text()}").exists():
        succeed("down")
    if state.load() is not None:
        pytest.fail("a cluster is up or was left unfinished; take it down first: scripts/cluster down")
    # The first namespace on a machine makes this folder, which is iproute2's.
    processes.NAMESPACES.mkdir(parents=True, exist_ok=True)
    RUN.write_text(str(os.getpid()))
    try:
        yield
    finally:
        RUN.unlink()


@pytest.fixture
def unchanged(namespaces: None) -> Iterator[dict[str, object]]:
    """The machine before the test, which it must be after it too."""
    before = traces()
    try:
        yield before
        after = traces()
    finally:
        call("down")
    assert after == before


@pytest.fixture(scope="module")
def cluster(namespaces: None) -> Iterator[None]:
    """Three hosts at 1 Gbit/s, for all tests of a module."""
    try:
        succeed("up", "--hosts", "3", "--rate", "1gbit")
        yield
    finally:
        call("down")
