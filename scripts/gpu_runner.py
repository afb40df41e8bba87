"""Commands run one after the other, each within its own time and all within theirs, whatever becomes of the others."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SHOWN = 60  # lines of a stage's output
# In the environment of all that a stage starts.
TAG = "GRAWA_STAGE"
SECONDS_TO_END = 5


@dataclass(frozen=True)
class Stage:
    """One command.

    Args:
        name: as in the table.
        command: what is run.
        folder: where.
        seconds: how long at most.
        variables: set in its environment beside those of this process.
        missing: why it cannot be run; the empty string if it can.
        is_optional: whether what is missing is no failure.
    """

    name: str
    command: list[str]
    folder: Path
    seconds: float
    variables: Mapping[str, str] = field(default_factory=dict)
    missing: str = ""
    is_optional: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: `result` is passed, failed, timed out, or skipped."""

    name: str
    result: str
    seconds: float
    reason: str
    is_failure: bool


class Runner:
    """Runs stages until its time is over; their output goes to a file and, shortened, to the screen.

    Args:
        log: where the output of all stages goes.
        seconds: for all stages together.
    """

    def __init__(self, log: Path, seconds: float) -> None:
        self._log = log
        self._end = time.monotonic() + seconds
        log.write_text("")

    def run(self, stage: Stage) -> Outcome:
        """Run one stage, or say why it is skipped."""
        print(f"\n== {stage.name}", flush=True)
        outcome = self._outcome(stage)
        print(f"   {outcome.result}{outcome.reason and ': '}{outcome.reason}, {outcome.seconds:.0f} s", flush=True)
        return outcome

    def _outcome(self, stage: Stage) -> Outcome:
        limit = min(stage.seconds, self._end - time.monotonic())
        if stage.missing:
            return Outcome(stage.name, "skipped", 0, stage.missing, not stage.is_optional)
        if limit <= 0:
            return Outcome(stage.name, "skipped", 0, "the time of all stages is over", True)
        begin, start = time.monotonic(), self._log.stat().st_size
        code = self._exit_code(stage, limit)
        seconds = time.monotonic() - begin
        print(self._last_lines(start), flush=True)
        if code is None:
            return Outcome(stage.name, "timed out", seconds, f"it had {limit:.0f} s", True)
        return Outcome(
            stage.name, "failed" if code else "passed", seconds, f"exit code {code}" if code else "", code != 0
        )

    def _exit_code(self, stage: Stage, limit: float) -> int | None:
        with self._log.open("a") as log:
            print(f"\n== {stage.name}", file=log, flush=True)
            with _started(stage, log.fileno()) as process:
                try:
                    return process.wait(limit)
                except subprocess.TimeoutExpired:
                    return None

    def _last_lines(self, start: int) -> str:
        with self._log.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
        # A progress bar writes its line again and again.
        return "\n".join(line.rpartition("\r")[2] for line in lines[2:][-SHOWN:])


@contextlib.contextmanager
def _started(stage: Stage, output: int) -> Iterator[subprocess.Popen[bytes]]:
    tag = uuid.uuid4().hex
    try:
        process = subprocess.Popen(
            stage.command,
            cwd=stage.folder,
            env={**os.environ, **stage.variables, TAG: tag},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:  # as with exit code 127 of a shell
        os.write(output, f"{error}\n".encode())
        process = subprocess.Popen(["sh", "-c", "exit 127"])
    try:
        yield process
    finally:
        _end(process, tag)


def _end(process: subprocess.Popen[bytes], tag: str) -> None:
    """End it and all that it started: Horovod puts its workers into sessions of their own."""
    family = _descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        process.kill()
        process.wait()
    # What was started while the family was looked up carries the tag.
    while family := [*family, *_tagged(tag)]:
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        family = []


def _tagged(tag: str) -> list[int]:
    """Processes that run in the environment of a stage."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{TAG}={tag}".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def _descendants(pid: int) -> list[int]:
    """Children, theirs, and so on. Without psutil, which the machine may lack until the wheels are unpacked."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may have blanks; behind it come the state and the parent.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
    family, generation = [], {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        family += sorted(generation)
    return family
