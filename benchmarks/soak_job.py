"""An elastic job whose workers are ended one after the other: it is started, disturbed, stopped and looked after."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
ARMED = {signal.SIGKILL: signal.SIGUSR1, signal.SIGSEGV: signal.SIGUSR2}
CACHE = "torchinductor_"  # torch's own, among temporary files
PATIENCE = 180.0  # seconds for what takes ten on an idle machine
Event = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a job runs.

    Attributes:
        hosts: by name; horovodrun gives up the host of a worker that dies.
        slots: workers on each.
        cooldown: at least and at most so many seconds after it was given up a host is taken again. It has to be longer
            than the others take to restart: Horovod tells nobody of a host that comes back meanwhile.
        before: the words that go before the launcher's own.
        options: of the launcher.
    """

    hosts: tuple[str, ...]
    slots: int
    cooldown: tuple[str, str]
    before: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """All together."""
        return len(self.hosts) * self.slots


# Names of this machine that horovodrun takes for hosts.
ONE_MACHINE = Place(("localhost", "127.0.0.1", "127.0.1", "127.1"), 1, ("1", "2"))
CLUSTER = Place(
    ("host1", "host2", "host3"), 4, ("12", "15"),
    (sys.executable, str(ROOT / "scripts" / "cluster"), "exec", "host1", "--"),
    ("--gloo", "--network-interfaces", "eth0"),
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A worker's end.

    Attributes:
        after: so many seconds of work of the whole job.
        victim: in [0, 1), which of the workers.
        signal: what ends it.
        place: "step", wherever it is, or "round", in its next collective.
    """

    after: float
    victim: float
    signal: signal.Signals
    place: str


def faults(seed: int, seconds: float, every: float) -> list[Fault]:
    """As many as fit, the same for the same seed: every so many seconds, give or take a fifth; a quarter SIGSEGV."""
    draw, found = random.Random(seed), []
    for _ in range(int(seconds / every)):
        kind = signal.SIGSEGV if draw.random() < 0.25 else signal.SIGKILL
        found.append(Fault(every * draw.uniform(0.8, 1.2), draw.random(), kind, draw.choice(["step", "round"])))
    return found


class Job:
    """An elastic horovodrun.

    Args:
        place: where it runs.
        plan: what `benchmarks.soak_worker` reads, without its folder.
        folder: empty; all that the job writes is there.
    """

    def __init__(self, place: Place, plan: dict[str, Any], folder: Path) -> None:
        self._place, self.folder, self.injected = place, folder, list[Event]()
        script, scratch = folder / "discover.sh", folder / "scratch"
        scratch.mkdir()
        script.write_text("#!/bin/sh\n" + "".join(f"echo {host}:{place.slots}\n" for host in place.hosts))
        script.chmod(0o755)
        self._mark = folder.name
        environment = {
            **os.environ, "GRAWA_SOAK_PLAN": json.dumps({**plan, "folder": str(folder)}), "OMP_NUM_THREADS": "1",
            "GRAWA_SOAK_MARK": self._mark, "TMPDIR": str(scratch),
            "HOROVOD_GLOO_TIMEOUT_SECONDS": str(plan["gloo_timeout"]),
        }  # fmt: skip
        size = str(place.workers)
        with (folder / "output").open("w") as output:
            self._launcher = subprocess.Popen(
                [*place.before, Path(sys.executable).with_name("horovodrun"), *place.options, "-np", size,
                 "--min-np", "1", "--max-np", size, "--host-discovery-script", script,
                 "--blacklist-cooldown-range", *place.cooldown,
                 sys.executable, "-m", "benchmarks.soak_worker"],
                cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def workers(self) -> dict[int, Event]:
        """The last thing that each living worker noted, by process; in the order of their files' names."""
        found = {}
        for file in sorted(self.folder.glob("worker.*")):
            pid = int(file.suffix[1:])
            lines = _tail(file).splitlines()
            if lines and _lives(pid):
                found[pid] = json.loads(lines[-1])
        return found

    def is_whole(self) -> bool:
        """Whether all workers are there, and have just made a step together."""
        last, size, now = list(self.workers().values()), self._place.workers, time.time()
        return len(last) == size and all(one.get("size", size) == size and now - one["time"] < 2 for one in last)

    def wait_until_whole(self) -> None:
        """Wait for the first steps.

        Raises:
            RuntimeError: if the job ends or takes too long.
        """
        deadline = time.monotonic() + PATIENCE
        while not self.is_whole():
            self.check(time.monotonic() < deadline)
            time.sleep(0.1)

    def check(self, in_time: bool = True) -> None:
        """Raise RuntimeError if the job has ended, or what was waited for has not come in time."""
        if self._launcher.poll() is not None or not in_time:
            what = "did not come that far in time" if not in_time else f"ended with {self._launcher.returncode}"
            raise RuntimeError(f"the job {what}:\n{(self.folder / 'output').read_text()[-4000:]}")

    def inject(self, fault: Fault) -> None:
        """End a worker."""
        alive = self.workers()
        pid = list(alive)[int(fault.victim * len(alive))]
        os.kill(pid, fault.signal if fault.place == "step" else ARMED[fault.signal])
        described = {**asdict(fault), "signal": fault.signal.name}
        self.injected.append({**described, "time": time.time(), "pid": pid, "workers": len(alive)})

    def stop(self) -> int:
        """Let the workers come to an end together; return the launcher's exit code."""
        (self.folder / "stop").touch()
        try:
            return self._launcher.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.check(in_time=False)
            raise

    def processes_left(self, seconds: float) -> list[int]:
        """The job's processes that are still there after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            found = [process.pid for process in psutil.process_iter() if self._is_ours(process)]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get("GRAWA_SOAK_MARK") == self._mark and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def files_left(self) -> list[str]:
        """What the job's processes left among temporary files."""
        return sorted(one.name for one in (self.folder / "scratch").iterdir() if not one.name.startswith(CACHE))

    def end(self) -> None:
        """Kill what is left, and take the launcher's exit code."""
        if self._launcher.poll() is None:
            self._launcher.kill()
        for pid in self.processes_left(0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._launcher.wait()

    def logs(self) -> list[list[Event]]:
        """What the workers noted."""
        return [list(_events(file)) for file in sorted(self.folder.glob("worker.*"))]


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _tail(file: Path) -> str:
    """The last whole lines."""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 1000))
        text = opened.read().decode()
    return text[text.find("\n") + 1 if len(text) == 1000 else 0 : text.rfind("\n") + 1]


def _events(file: Path) -> Iterator[Event]:
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last one, of a worker that died while it wrote
            yield json.loads(line)


@contextlib.contextmanager
def started(place: Place, plan: dict[str, Any], folder: Path) -> Iterator[Job]:
    """A job, of which nothing is left afterwards."""
    job = Job(place, plan, folder)
    try:
        yield job
    finally:
        job.end()
        shutil.rmtree(folder)
