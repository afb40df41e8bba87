"""The link of a host goes down: all workers, those on that host too, end in bounded time with an error that says so."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Note
from machine import call, running, succeed, wait_for

pytestmark = pytest.mark.usefixtures("cluster")

PLACES = {"step": "in a local step", "round": "within a round"}
LIMIT = 10  # seconds that workers wait for each other
SCRIPT = Path(__file__).resolve().parents[1] / "elastic" / "train_standing.py"
HOROVODRUN = str(Path(sys.executable).parent / "horovodrun")


@pytest.fixture
def link() -> Iterator[None]:
    """The link of host2, up again after the test."""
    yield
    succeed("exec", "host2", "--", "ip", "link", "set", "eth0", "up")


@pytest.mark.parametrize("place", PLACES)
def test_all_workers_end_with_an_error_when_a_link_is_cut(place: str, tmp_path: Path, link: None, fault: Note) -> None:
    fault(f"the link of a host is cut, {PLACES[place]}: the job ends with an error", "horovodrun")
    launch = ["env", f"HOROVOD_GLOO_TIMEOUT_SECONDS={LIMIT}", "OMP_NUM_THREADS=1", HOROVODRUN, "--gloo", "-np", "3"]
    launch += ["-H", "host1:1,host2:1,host3:1", "--network-interfaces", "eth0", sys.executable, str(SCRIPT)]
    finished = call("exec", "--timeout", "200", "host1", "--", *launch, "horovod", str(tmp_path), place, "cut",
                    seconds=260)  # fmt: skip
    assert finished.returncode not in (0, 124), finished.stdout[-2000:] + finished.stderr[-4000:]
    wait_for(lambda: len(list(tmp_path.glob("error.*"))) == 3)
    for file in tmp_path.glob("error.*"):
        assert f"stood still for longer than HOROVOD_GLOO_TIMEOUT_SECONDS, which is {LIMIT}" in file.read_text()
    wait_for(lambda: running(str(SCRIPT)) == [])
