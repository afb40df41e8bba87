#!/usr/bin/env python3
"""Run the tests of the CUDA kernels on a machine without a GPU or nvcc: the kernels as C++, their threads as fibers.

Needs g++ (C++20) and PyTorch, any build. The threads of a block, and the blocks of a launch, run one at a time in an
order that each pass chooses: a result that depends on it fails a test. What ends the process: a 16-byte word that is
not aligned, memory that is not the device's, a barrier that some threads of a block never reach. Floating point is
the host's: results differ from a GPU's where nvcc contracts a product and a sum. Arguments after `--` go to pytest.
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
from pathlib import Path

import emulator_build
from emulator_build import Variant

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["layer_norms", "pack", "blend", "layer_table", "sgd_step", "adamw_step", "step_table"]
PLAIN = Variant("plain")
VARIANTS = [PLAIN]


@dataclass(frozen=True)
class Pass:
    """One run of the tests: on which build, and with what the emulator is told."""

    name: str
    variant: Variant = PLAIN
    settings: dict[str, str] = field(default_factory=dict)


ORDERS = ("forward", "reversed", "random")
PASSES = [Pass(order, settings={"GRAWA_EMULATOR_ORDER": order}) for order in ORDERS]


def run(wanted: Pass, tree: Path, folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The tests of a source tree, with what they print."""
    tests = [str(tree / "tests" / "single" / f"test_{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulated_cuda", "-p", "no:cacheprovider", *tests, *arguments]
    env = {
        **os.environ,
        "GRAWA_EMULATOR": str(emulator_build.extension(folder, wanted.variant)),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{tree}:{emulator_build.EMULATOR}",
        **wanted.settings,
    }
    return subprocess.run(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_all(passes: Sequence[Pass], tree: Path, folder: Path, arguments: Sequence[str], jobs: int) -> list[str]:
    """Returns the names of the passes that failed, whose output is printed."""

    def timed(wanted: Pass) -> bool:
        start = time.monotonic()
        finished = run(wanted, tree, folder, arguments)
        last = finished.stdout.strip().splitlines()[-1:]
        if finished.returncode:
            print(finished.stdout[-8000:], file=sys.stderr)
        print(f"emulator: {wanted.name}: {' '.join(last)} ({time.monotonic() - start:.0f} s)", flush=True)
        return finished.returncode == 0

    with ThreadPoolExecutor(jobs) as pool:
        passed = list(pool.map(timed, passes))
    return [wanted.name for wanted, is_passed in zip(passes, passed, strict=True) if not is_passed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, metavar="DIR", help="another source tree (default: this one)")
    parser.add_argument("--build", type=Path, metavar="DIR", help="where to build (default: build/emulator in the tree)")
    parser.add_argument("--passes", nargs="*", default=[each.name for each in PASSES], metavar="NAME")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("MAX_JOBS", os.cpu_count() or 2)), metavar="N")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="of pytest, after --")
    arguments = parser.parse_args()
    tree = arguments.tree.absolute()
    folder = (arguments.build or tree / "build" / "emulator").absolute()
    start = time.monotonic()
    emulator_build.build(tree, folder, VARIANTS, arguments.jobs)
    print(f"emulator: built in {time.monotonic() - start:.0f} s", flush=True)
    passes = [each for each in PASSES if each.name in arguments.passes]
    failed = run_all(passes, tree, folder, arguments.arguments, arguments.jobs)
    if failed:
        emulator_build.fail(f"the kernels' tests fail: {', '.join(failed)}")


if __name__ == "__main__":
    main()
