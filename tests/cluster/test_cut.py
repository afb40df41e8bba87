"""The link of a host goes down: all workers, those on that host too, end in bounded time with an error that says so."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import Note
from machine import call, running, succeed, wait_for

pytestmark = pytest.mark.usefixtures("cluster")

PLACES = {"step": "in a local step", "round": "within a round"}
LIMIT = 10  # seconds that workers wait for each other
SCRIPT = Path(__file__).resolve().parents[1] / "elastic" / "train_standing.py"
COMMANDS = Path(sys.executable).parent
HOSTS = ("host1", "host2", "host3")
LIMITS = {
    "horovodrun": f"HOROVOD_GLOO_TIMEOUT_SECONDS, which is {LIMIT}",
    "torchrun": r"given to init_process_group\(\)",
}


@pytest.fixture
def link() -> Iterator[None]:
    """The link of host2, up again after the test."""
    yield
    succeed("exec", "host2", "--", "ip", "link", "set", "eth0", "up")


def launches(launcher: str, *arguments: str) -> dict[str, list[str]]:
    """The commands by the hosts on which they are started; together they start a worker on each host."""
    limits = ["env", f"HOROVOD_GLOO_TIMEOUT_SECONDS={LIMIT}", "OMP_NUM_THREADS=1", "GLOO_SOCKET_IFNAME=eth0"]
    command = [*limits, str(COMMANDS / launcher)]
    if launcher == "horovodrun":
        hosts = ",".join(f"{host}:1" for host in HOSTS)
        command += ["--gloo", "-np", "3", "-H", hosts, "--network-interfaces", "eth0", sys.executable]
        return {"host1": [*command, str(SCRIPT), "horovod", *arguments]}
    command += ["--nnodes", "3", "--nproc-per-node", "1", "--master-addr", "host1", "--master-port", "29400"]
    return {
        host: [*command, "--node-rank", str(rank), str(SCRIPT), "torch", *arguments] for rank, host in enumerate(HOSTS)
    }


@pytest.mark.parametrize("launcher", LIMITS)
@pytest.mark.parametrize("place", PLACES)
def test_all_workers_end_with_an_error_when_a_link_is_cut(
    place: str, launcher: str, tmp_path: Path, link: None, fault: Note
) -> None:
    fault(f"the link of a host is cut, {PLACES[place]}: the job ends with an error", launcher)
    jobs = launches(launcher, str(tmp_path), place, "cut")
    with ThreadPoolExecutor(len(jobs)) as pool:
        calls = [
            pool.submit(call, "exec", "--timeout", "200", host, "--", *command, seconds=260)
            for host, command in jobs.items()
        ]
        ended = [one.result() for one in calls]
    for finished in ended:
        assert finished.returncode not in (0, 124), finished.stdout[-2000:] + finished.stderr[-4000:]
    wait_for(lambda: len(list(tmp_path.glob("error.*"))) == 3)
    for file in tmp_path.glob("error.*"):
        error = file.read_text()
        assert re.search(rf"a worker is gone: .*stood still for longer than .*{LIMITS[launcher]}", error), error
    wait_for(lambda: running(str(SCRIPT)) == [])
