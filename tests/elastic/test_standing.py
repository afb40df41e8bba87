"""A worker that stands still, as under a debugger, or ends: the others wait for a bounded time, and say so.

A short stop costs nothing but the time; after a long one the job ends with an error that says what has happened.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from faults import Note

PLACES = {"step": "in a local step", "round": "within a round"}
RANKS = 3
LIMIT = 8  # seconds that the others wait
SECONDS_TO_END = 150  # after the error: Horovod and torchrun give their workers some, and the machine may be busy
LAUNCHERS = {
    "horovod": ("horovodrun", "--gloo", "-np", str(RANKS), "-H", f"localhost:{RANKS}", sys.executable),
    "torch": ("torchrun", "--standalone", "--nproc-per-node", str(RANKS)),
}


class Job:
    """A launch of the workers, of which nothing is left once `end` has been called."""

    def __init__(self, transport: str, place: str, limit: int, folder: Path, how: str = "stop") -> None:
        launcher, *options = LAUNCHERS[transport]
        script = Path(__file__).with_name("train_standing.py")
        self.folder, self.mark = folder, folder.name + str(os.getpid())
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name(launcher), *options, script, transport, folder, place, how],
                env={**os.environ, processes.MARK: self.mark, "OMP_NUM_THREADS": "1",
                     "HOROVOD_GLOO_TIMEOUT_SECONDS": str(limit)},
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def wait_for_stop(self) -> int:
        """The process that has stopped itself."""
        file, deadline = self.folder / "stopped", time.monotonic() + SECONDS_TO_END
        while not (file.exists() and file.read_text()):
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "output").read_text()
            time.sleep(0.1)
        return int(file.read_text())

    def said(self, kind: str) -> list[str]:
        """What the workers have written at their ends, or of their errors."""
        return [file.read_text() for file in sorted(self.folder.glob(f"{kind}.*"))]

    def end(self) -> None:
        """Kill what is left."""
        processes.kill(processes.left(self.mark, seconds=0))
        self.process.wait()


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    started: list[Job] = []
    yield started  # type: ignore[misc]
    for job in started:
        job.end()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("transport", LAUNCHERS)
def test_the_others_end_with_an_error_that_says_what_has_happened(
    transport: str, place: str, tmp_path: Path, jobs: list[Job], fault: Note
) -> None:
    fault(f"SIGSTOP for longer than the limit, {PLACES[place]}: the job ends with an error", LAUNCHERS[transport][0])
    jobs.append(job := Job(transport, place, LIMIT, tmp_path))
    stopped = job.wait_for_stop()
    assert job.process.wait(LIMIT + SECONDS_TO_END) != 0
    errors = job.said("error")
    assert len(errors) == RANKS - 1
    limit = {"horovod": f"HOROVOD_GLOO_TIMEOUT_SECONDS, which is {LIMIT}", "torch": r"given to init_process_group\(\)"}
    for error in errors:
        assert re.search(rf"a worker is gone: .*stood still for longer than .*{limit[transport]}", error), error
    assert job.said("end") == []
    with contextlib.suppress(ProcessLookupError):  # torchrun kills it, Horovod's signal waits until it goes on
        os.kill(stopped, signal.SIGCONT)
    assert processes.left(job.mark, seconds=30) == []


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("transport", LAUNCHERS)
def test_after_a_short_stop_the_run_goes_on(
    transport: str, place: str, tmp_path: Path, jobs: list[Job], fault: Note
) -> None:
    fault(f"SIGSTOP and SIGCONT after 2 s, {PLACES[place]}", LAUNCHERS[transport][0])
    jobs.append(job := Job(transport, place, 120, tmp_path))
    stopped = job.wait_for_stop()
    time.sleep(2)
    assert job.process.poll() is None
    assert job.said("error") == job.said("end") == []
    os.kill(stopped, signal.SIGCONT)
    assert job.process.wait(SECONDS_TO_END) == 0, (tmp_path / "output").read_text()
    assert len(job.said("end")) == RANKS
    assert processes.left(job.mark, seconds=10) == []


ENDS = {"raise": "an exception in a local step", "exit": "an end before the others", "kill": "SIGKILL in a local step"}


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("transport", LAUNCHERS)
def test_a_worker_that_ends_ends_the_job(
    transport: str, how: str, tmp_path: Path, jobs: list[Job], fault: Note
) -> None:
    """As one that raises, or has fewer batches and did not say so. The launcher may end the others before they fail."""
    fault(f"{ENDS[how]}: the job ends with an error", LAUNCHERS[transport][0])
    jobs.append(job := Job(transport, "step", LIMIT, tmp_path, how))
    assert job.process.wait(LIMIT + SECONDS_TO_END) != 0
    errors = [error for error in job.said("error") if "no batch left" not in error]
    assert all(error.partition(": ")[2].startswith("a worker is gone: it has died or ended") for error in errors)
    assert len(errors) == RANKS - 1 or how != "exit"
    assert job.said("end") == []
    assert processes.left(job.mark, seconds=30) == []
