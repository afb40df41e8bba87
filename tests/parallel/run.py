#!/usr/bin/env python3
"""Run tests/parallel by a launcher, once for each number of processes: `run.py [-np 2 4] [pytest arguments ...]`.

The launcher is horovodrun or, with `--transport torch`, torchrun. Prints rank 0's pytest output as it comes. Where a
rank fails, hangs or dies, prints every rank's failures and where each rank was. Ends with one line, `N passed, N
failed`, over all worlds; the exit code is 0 only if tests ran and every rank of every world succeeded.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SECONDS_TO_END = 8


@dataclass(frozen=True)
class World:
    """One launch: its size, what carries its sums, and the folder in which its ranks leave their output and notes."""

    processes: int
    transport: str
    folder: Path

    @property
    def launcher(self) -> str:
        return {"horovod": "horovodrun", "torch": "torchrun"}[self.transport]

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    def noted(self, name: str, rank: int) -> str | None:
        file = self.notes / f"{name}.{rank}"
        return file.read_text() if file.exists() else None

    def stream(self, rank: int, name: str) -> Path:
        if self.transport == "horovod":
            return self.folder / "output" / f"rank.{rank:0{len(str(self.processes - 1))}}" / name
        # torchrun puts a folder of its own in between.
        found = self.folder.glob(f"output/*/attempt_0/{rank}/{name}.log")
        return next(found, self.folder / "output" / "none yet")


def command(world: World, pytest_arguments: list[str]) -> list[str]:
    size, output = str(world.processes), str(world.folder / "output")
    # Of the environment that this Python belongs to, not of the PATH's.
    if world.transport == "horovod":
        horovodrun = Path(sys.executable).parent / "horovodrun"
        launcher = [str(horovodrun), "-np", size, "-H", f"localhost:{size}"]
        launcher += ["--output-filename", output, sys.executable]
    else:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size]
        launcher += ["--redirects", "3", "--log-dir", output]
    chosen = any(Path(ROOT, argument.split("::")[0]).exists() for argument in pytest_arguments)
    tests = [] if chosen else ["tests/parallel"]
    return [*launcher, "-m", "pytest", "-p", "no:cacheprovider", *tests, *pytest_arguments]


def environment(world: World) -> dict[str, str]:
    return {
        **os.environ,
        "GRAWA_TEST_NOTES": str(world.notes),
        "GRAWA_TEST_TRANSPORT": world.transport,
        "GRAWA_TEST_WORLD": f"{world.launcher} -np {world.processes}",
        "HOROVOD_DYNAMIC_PROCESS_SETS": "1",
        "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",  # a machine that stands still for half a minute is no failure
        "HOROVOD_STALL_CHECK_TIME_SECONDS": "20",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def end(process: subprocess.Popen[bytes]) -> None:
    """End the launcher and whatever it started: Horovod puts its workers into sessions of their own."""
    try:
        family = [*psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.terminate()
    psutil.wait_procs([psutil.Process(process.pid)] if process.poll() is None else [], timeout=SECONDS_TO_END)
    process.kill()
    for child in family:
        if child.is_running():
            child.kill()
    process.wait()


def text_of(file: Path) -> str:
    """A rank's output without the prefixes of its launcher and the inner frames of pytest; nothing if it has none."""
    text = file.read_text(errors="replace") if file.exists() else ""
    text = re.sub(r"^\[\d+\]<std(?:out|err)>:|^Extension modules: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r'  File "[^"]*/(?:_pytest|pluggy)/.*\n(?:    .*\n)?', "", text)


def follow(process: subprocess.Popen[bytes], world: World, deadline: float) -> bool:
    """Print rank 0's output as it grows, until the launcher ends. Returns whether it did so in time."""
    printed = 0
    while True:
        running = process.poll() is None
        text = text_of(world.stream(0, "stdout"))
        # Up to a line's end: of a prefix that is only half written, nothing must show.
        whole = text.rfind("\n") + 1 if running else len(text)
        print(text[printed:whole], end="", flush=True)
        printed = max(printed, whole)
        if not running or time.monotonic() > deadline:
            return not running
        time.sleep(0.1)


def counts(output: str) -> Counter[str]:
    """What pytest's own closing line says: `== 1 failed, 41 passed in 30.00s ==`."""
    closing = [line for line in output.splitlines() if re.search(r"\d+ \w+.* in [\d.]+s", line)]
    found = re.findall(r"(\d+) (passed|failed|error|skipped)", closing[-1]) if closing else []
    return Counter({name: int(number) for number, name in found})


def end_of(world: World, rank: int) -> str:
    """How a rank that did not come to its end was ended, as far as it left a word of it.

    The others die of a rank that ends first: Horovod's thread sees connections break, and aborts the process.
    """
    said = text_of(world.stream(rank, "stdout")) + text_of(world.stream(rank, "stderr"))
    words = [
        *(["its test timed out"] if "+ Timeout +" in said else []),
        *re.findall(r"uncaught exception: .*|terminate called.*|what\(\): .*|Fatal Python error: .*", said),
    ]
    return "; ".join(dict.fromkeys(word.strip() for word in words)) or "not a word of why"


def tell_of_trouble(world: World) -> None:
    """What rank 0's output alone does not show: each rank's failures, the stacks of what hung, where each rank was."""
    unfinished = [rank for rank in range(world.processes) if world.noted("exit", rank) is None]
    for rank in range(world.processes):
        parts = {"failures": world.noted("failures", rank) if rank > 0 or rank in unfinished else None}
        if rank in unfinished:
            parts["stderr (its end)"] = text_of(world.stream(rank, "stderr"))[-4000:]
            timeout = text_of(world.stream(rank, "stdout")).partition("+ Timeout +")[2]
            parts["stdout (its end)"] = timeout[-4000:] if rank > 0 else None
            # Most recent call first: what lies further down is pytest's own.
            parts["stack when it was ended"] = "\n".join((world.noted("stacks", rank) or "").splitlines()[:12])
        for name, text in parts.items():
            if text and text.strip():
                print(f"---- rank {rank}: {name} ----\n{text.strip()}")
    for rank in unfinished:
        place = world.noted("place", rank) or "before its first test"
        print(f"rank {rank} did not come to its end: {place}: {end_of(world, rank)}")


def run_world(processes: int, transport: str, seconds: float, pytest_arguments: list[str]) -> tuple[bool, Counter[str]]:
    print(f"==== {processes} processes, {transport} ====", flush=True)
    with tempfile.TemporaryDirectory(prefix="grawa-parallel-") as folder:
        world = World(processes, transport, Path(folder))
        world.notes.mkdir()
        with Path(folder, "launcher").open("w+") as launcher:
            process = subprocess.Popen(
                command(world, pytest_arguments),
                cwd=ROOT,
                env=environment(world),
                stdout=launcher,
                stderr=launcher,
                start_new_session=True,
            )
            try:
                in_time = follow(process, world, time.monotonic() + seconds)
            finally:
                end(process)
            launcher.seek(0)
            said = launcher.read()
        exits = [world.noted("exit", rank) for rank in range(processes)]
        succeeded = in_time and process.returncode == 0 and exits == ["0"] * processes
        if not succeeded:
            print("" if world.stream(0, "stdout").exists() else said[-4000:], end="")
            # torchrun's word of a rank that died; horovodrun has none.
            for word in re.findall(r"failed \(exitcode: \S+\) local_rank: \d+", said):
                print(word)
            tell_of_trouble(world)
            by_itself = f"{world.launcher} ended with {process.returncode}"
            ended = by_itself if in_time else f"not done after {seconds:.0f} s"
            print(f"{processes} processes, {transport}: FAILED, {ended}", flush=True)
        counted = counts(text_of(world.stream(0, "stdout")))
        # A world that failed without failing a test, as by a hang, counts as one failure.
        return succeeded, counted if succeeded or counted["failed"] + counted["error"] else counted + Counter(failed=1)


def numbers_joined(arguments: list[str]) -> list[str]:
    """`-np 2 4 FILE` as `-np 2,4 FILE`: argparse would take FILE for a number too."""
    joined: list[str] = []
    for position, argument in enumerate(arguments):
        if argument.isdigit() and "-np" in arguments[max(0, position - 1) : position]:
            joined.append(argument)
        elif argument.isdigit() and len(joined) > 1 and joined[-2] == "-np":
            joined[-1] += f",{argument}"
        else:
            joined.append(argument)
    return joined


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("-np", default="2,4", metavar="N", help="numbers of processes, one or more (default: 2 4)")
    parser.add_argument("--transport", choices=["horovod", "torch"], default="horovod", help="(default: horovod)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for each world (600)")
    arguments, pytest_arguments = parser.parse_known_args(numbers_joined(sys.argv[1:]))
    # A SIGTERM, as of timeout(1), has to pass through the clean-up too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start, total, all_succeeded = time.monotonic(), Counter[str](), True
    for processes in map(int, arguments.np.split(",")):
        succeeded, counted = run_world(processes, arguments.transport, arguments.timeout, pytest_arguments)
        total += counted
        all_succeeded &= succeeded
    failed = total["failed"] + total["error"]
    ran = total["passed"] + failed
    if not ran:
        print("no test ran")
    print(f"{total['passed']} passed, {failed} failed in {time.monotonic() - start:.0f} s")
    return 0 if all_succeeded and ran and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
