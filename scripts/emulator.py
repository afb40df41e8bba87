#!/usr/bin/env python3
"""Run the tests of the CUDA kernels on a machine without a GPU or nvcc: the kernels as C++, their threads as fibers.

Needs g++ 11 or newer, and a PyTorch of any build. The threads of a block, and the blocks of a launch, run one at a
time, in an order that each pass chooses: a result that depends on it fails a test. What ends the process, with a
message: a 16-byte word that is not aligned, memory that is not the device's, a barrier that some threads of a block
never reach. At last each barrier is taken out of the kernels in turn, which must make the tests fail. Two things are
the host's: the rounding of a product and a sum, which nvcc contracts, and memory, in which each thread sees at once
what others have written. The first build takes some 150 s of processor time; later ones, what has changed.
Arguments after `--` go to pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import emulator_build
from emulator_build import PLAIN, Variant, fail
from emulator_mutants import mutants

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["layer_norms", "pack", "blend", "layer_table", "step_kernels", "step_table"]
# As GPUs that are slow in float64 add up squares.
SLOW_DOUBLE = Variant("slow-double", ("-DGRAWA_SLOW_DOUBLE",), ("cuda/squares.cuh",))
MOST_SECONDS = 600


@dataclass(frozen=True)
class Pass:
    """One run of the tests: on which build, and what the emulator is told."""

    name: str
    variant: Variant = PLAIN
    order: str = "random"
    settings: dict[str, str] = field(default_factory=dict)


PASSES = [
    *(Pass(order, order=order) for order in ("forward", "reversed", "random")),
    Pass("slow-double", SLOW_DOUBLE),
    Pass("captured", settings={"GRAWA_EMULATOR_CAPTURES": "1"}),
]


@dataclass(frozen=True)
class Result:
    """How a run of the tests ended."""

    name: str
    passed: bool
    output: str
    seconds: float

    @property
    def summary(self) -> str:
        return f"{self.name}: {self.output.strip().splitlines()[-1].strip('= ')} ({self.seconds:.0f} s)"


def run(tree: Path, folder: Path, arguments: Sequence[str], wanted: Pass) -> Result:
    """The tests of a source tree. Without an end they have failed."""
    tests = [f"tests/single/test_{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulated_cuda", "-p", "no:cacheprovider"]
    command += [*tests, *arguments]
    env = {
        **os.environ,
        "GRAWA_EXTENSION": str(folder / wanted.variant.extension),
        "GRAWA_EMULATOR_ORDER": wanted.order,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tree}:{emulator_build.EMULATOR}:{emulator_build.EMULATOR.parent}",
        **wanted.settings,
    }
    start = time.monotonic()
    try:
        output_to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        finished = subprocess.run(command, cwd=tree, env=env, timeout=MOST_SECONDS, check=False, **output_to)
        passed, output = finished.returncode == 0, finished.stdout
    except subprocess.TimeoutExpired:
        passed, output = False, f"no end after {MOST_SECONDS} s"
    return Result(wanted.name, passed, output, time.monotonic() - start)


def check_passes(results: Sequence[Result]) -> list[str]:
    """What is wrong with runs that should pass."""
    for result in results:
        if not result.passed:
            print(result.output[-8000:], file=sys.stderr)
    return [f"the tests fail: {result.name}" for result in results if not result.passed]


def check_mutants(results: Sequence[Result]) -> list[str]:
    """What is wrong with runs of kernels with a barrier less."""
    return [f"no test notices a kernel {result.name}" for result in results if result.passed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--tree", type=Path, default=ROOT, metavar="DIR", help="another source tree (default: this one)")
    add("--build", type=Path, metavar="DIR", help="where to build (default: build/emulator in the tree)")
    add("--passes", nargs="+", choices=[each.name for each in PASSES], help="those alone, and no mutants")
    add("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", os.cpu_count() or 2)), metavar="N")
    add("arguments", nargs="*", metavar="ARGUMENT", help="of pytest, after --")
    given = parser.parse_args()
    tree = given.tree.absolute()
    folder = (given.build or tree / "build" / "emulator").absolute()
    texts = emulator_build.read_sources(tree / "csrc")
    variants = [SLOW_DOUBLE, *([] if given.passes else mutants(texts))]
    start = time.monotonic()
    emulator_build.build(texts, folder, variants, given.jobs)
    print(f"emulator: built in {time.monotonic() - start:.0f} s", flush=True)
    faults = run_all(given, tree, folder, variants[1:])
    if faults:
        fail("; ".join(faults))


def run_all(given: argparse.Namespace, tree: Path, folder: Path, without: Sequence[Variant]) -> list[str]:
    """All runs, some at a time; returns what is wrong."""

    def run_each(wanted: Sequence[Pass], arguments: Sequence[str]) -> list[Result]:
        results = []
        with ThreadPoolExecutor(given.jobs) as pool:
            for result in pool.map(partial(run, tree, folder, arguments), wanted):
                print(f"emulator: {result.summary}", flush=True)
                results.append(result)
        return results

    passes = run_each([each for each in PASSES if each.name in (given.passes or [each.name])], given.arguments)
    killed = run_each([Pass(variant.name, variant) for variant in without], ["--exitfirst", "--tb=no"])
    return check_passes(passes) + check_mutants(killed)


if __name__ == "__main__":
    main()
