#!/usr/bin/env python3
"""On a machine with a GPU: build the extension, test and time the kernels, train; with no network, in 8 minutes.

Needs PyTorch with CUDA in the Python that runs this, and nvcc. Horovod and small packages that this Python lacks are
taken from the wheels that `make wheels` has made, into build/gpu-check; nothing is installed elsewhere. What comes
first matters most, and the failure of one stage stops no other. Results, 8 files named gpu_*, go to the folder OUT:
facts and outcomes (gpu_summary.json), the output of all stages (gpu_log.txt), tests, times of the kernels and training
runs. The exit code is 0 if no stage failed.

--dry-run exercises the same stages on the CPU, with tiny sizes and the extension that is built already; its files are
named dry_run_* and are no results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import carried
import install_horovod
from stages import Outcome, Runner, Stage

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
STAGES = ["build", "installation", "tests", "kernels", "one-rank", "two-ranks", "memcheck", "racecheck"]


def fail(message: str) -> NoReturn:
    sys.exit(f"gpu_check: {message}")


@dataclass(frozen=True)
class Plan:
    """What the stages are made from.

    Args:
        out: where results go.
        is_dry: whether this is a dry run.
        capability: of the GPU, as "9.0"; None in a dry run.
        nccl: variables under which Horovod's build with NCCL is imported.
        gloo: those of the build without.
        no_gloo: why there is none, or the empty string.
    """

    out: Path
    is_dry: bool
    capability: str | None
    nccl: dict[str, str]
    gloo: dict[str, str]
    no_gloo: str

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry else "cuda"

    def result(self, name: str) -> str:
        """Only what was measured on a GPU is named so."""
        return str(self.out / f"{'dry_run' if self.is_dry else 'gpu'}_{name}")


def build_stage(plan: Plan) -> Stage:
    toolkit = install_horovod.cuda_home()
    missing = "a dry run takes the extension as it is" if plan.is_dry else "" if toolkit else "nvcc was not found"
    variables = {
        **plan.nccl,
        "FORCE_CUDA": "1",
        "CUDA_HOME": str(toolkit),
        "TORCH_CUDA_ARCH_LIST": str(plan.capability),
        "MAX_JOBS": str(len(os.sched_getaffinity(0))),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return Stage("build", command, ROOT, 240, variables, missing, is_optional=plan.is_dry)


def kernel_test_files() -> list[str]:
    """Those that run on each device that there is."""
    on_devices = re.compile(r"from devices import .*DEVICES|cuda\.is_available")
    files = sorted((ROOT / "tests" / "single").glob("test_*.py"))
    return [str(file) for file in files if on_devices.search(file.read_text())]


def test_stage(plan: Plan) -> Stage:
    chosen = "empty" if plan.is_dry else "cuda or not cpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *kernel_test_files(), "-k", chosen]
    return Stage("tests", [*command, f"--junitxml={plan.result('tests.xml')}"], ROOT, 150, plan.nccl)


def kernel_stage(plan: Plan) -> Stage:
    size = ["--models", "tiny500", "--threads", "1", "--seconds", "0.01"] if plan.is_dry else ["--seconds", "1"]
    command = [sys.executable, "-m", "benchmarks.kernels", "--device", plan.device, *size]
    command += ["--json", plan.result("kernels.json"), "--plot", plan.result("kernels.png")]
    return Stage("kernels", command, ROOT, 120, plan.nccl)


def training_stage(plan: Plan, ranks: int) -> Stage:
    """One rank sends through NCCL. Two on one GPU cannot: they send through host memory and Gloo."""
    name = "one-rank" if ranks == 1 else "two-ranks"
    stem = name.replace("-", "_")
    command = [sys.executable, "-m", "horovod.runner.launch", "-np", str(ranks), "-H", f"localhost:{ranks}"]
    command += [sys.executable, str(ROOT / "examples" / "digits.py"), "--device", plan.device]
    command += ["--epochs", "2", "--period", "8"] if plan.is_dry else []
    # Relative, since the example keeps its command line.
    stem = Path(plan.result(f"train_{stem}")).name
    command += ["--json", f"{stem}.json", "--plot", f"{stem}.png"]
    variables = {**(plan.nccl if ranks == 1 else plan.gloo), "OMP_NUM_THREADS": "1"}
    return Stage(name, command, plan.out, 60, variables, missing="" if ranks == 1 else plan.no_gloo)


def sanitizer_stage(plan: Plan, tool: str) -> Stage:
    program = [sys.executable, str(SCRIPTS / "every_kernel.py"), "--device", plan.device]
    if plan.is_dry:
        return Stage(tool, program, ROOT, 60, plan.nccl)
    sanitizer = shutil.which("compute-sanitizer")
    toolkit = install_horovod.cuda_home()
    if sanitizer is None and toolkit is not None and (toolkit / "bin" / "compute-sanitizer").exists():
        sanitizer = str(toolkit / "bin" / "compute-sanitizer")
    missing = "" if sanitizer else "compute-sanitizer was not found"
    command = [str(sanitizer), "--tool", tool, "--error-exitcode", "1", *program]
    # Without torch's pool of memory, an access behind a tensor is one outside of an allocation.
    return Stage(
        tool, command, ROOT, 90, {**plan.nccl, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, missing, is_optional=True
    )


def stages(plan: Plan, names: list[str]) -> list[Stage]:
    """In order of value, so that a run that is cut off leaves what matters most."""
    every = [
        build_stage(plan),
        Stage("installation", [sys.executable, "-m", "grawa_hvd"], ROOT, 30, plan.nccl),
        test_stage(plan),
        kernel_stage(plan),
        training_stage(plan, 1),
        training_stage(plan, 2),
        sanitizer_stage(plan, "memcheck"),
        sanitizer_stage(plan, "racecheck"),
    ]
    return [stage for stage in every if stage.name in names]


def facts(variables: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPTS / "gpu_facts.py")]
    told = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=False)
    if told.returncode:
        fail(f"{sys.executable} has no PyTorch that works; the reason is above")
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def without_host(tests: Path) -> dict[str, int]:
    """Takes the host's name out of pytest's report. Returns its counts."""
    if not tests.exists():
        return {}
    text = re.sub(r' hostname="[^"]*"', "", tests.read_text())
    tests.write_text(text)
    return {name: int(re.search(rf'\b{name}="(\d+)"', text)[1]) for name in ("tests", "failures", "errors", "skipped")}  # type: ignore[index]


def write_summary(plan: Plan, found: dict[str, Any], outcomes: list[Outcome], tests: dict[str, int]) -> None:
    summary = {"is_gpu_result": not plan.is_dry, **found, "stages": [asdict(outcome) for outcome in outcomes]}
    Path(plan.result("summary.json")).write_text(json.dumps({**summary, "tests": tests}, indent=1) + "\n")


def short_text(plan: Plan, found: dict[str, Any], outcomes: list[Outcome], tests: dict[str, int]) -> str:
    gpu = "DRY RUN on the CPU: nothing here is a result of a GPU" if plan.is_dry else found["gpu"]["name"]
    lines = [f"{gpu}, torch {found['versions']['torch']}, Horovod {found['versions']['horovod']}"]
    for outcome in outcomes:
        lines.append(f"{outcome.name:14}{outcome.result:10}{outcome.seconds:5.0f} s  {outcome.reason}".rstrip())
    if tests:
        lines.append("tests: " + ", ".join(f"{count} {name}" for name, count in tests.items()))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="OUT", help="folder of the results")
    add("--wheels", type=Path, default=ROOT / "wheels", metavar="FOLDER", help="of `make wheels` (default: wheels)")
    add("--minutes", type=float, default=8, help="for everything (default: %(default)s)")
    add("--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    add("--dry-run", action="store_true", help="on the CPU, with tiny sizes; no results")
    return parser.parse_args()


def main() -> None:
    arguments, begin = parse(), time.monotonic()
    requirements = carried.small_requirements((ROOT / "pyproject.toml").read_text())
    site = carried.unpack(arguments.wheels, ROOT / "build" / "gpu-check", requirements)
    nccl, gloo = (carried.variables(site, build, ROOT) for build in (carried.NCCL, carried.GLOO))
    if carried.has(site, carried.GLOO) and not carried.imports(nccl):
        print("gpu_check: Horovod's build with NCCL does not load here: everything runs with the one without.")
        nccl = gloo
    found = facts(nccl)
    if found["gpu"] is None and not arguments.dry_run:
        fail("PyTorch sees no GPU here. --dry-run exercises the stages on the CPU; its figures are no results.")
    if arguments.dry_run:
        found["gpu"] = None
    arguments.out.mkdir(parents=True, exist_ok=True)
    capability = None if arguments.dry_run else found["gpu"]["capability"]
    no_gloo = "" if arguments.dry_run or carried.has(site, carried.GLOO) else carried.NO_GLOO
    plan = Plan(arguments.out.absolute(), arguments.dry_run, capability, nccl, gloo, no_gloo)
    runner = Runner(Path(plan.result("log.txt")), 60 * arguments.minutes - (time.monotonic() - begin))
    outcomes: list[Outcome] = []
    for stage in stages(plan, arguments.stages):
        outcomes.append(runner.run(stage))
        # One rank sends to itself alone: a picture over bytes sent says nothing.
        Path(plan.result("train_one_rank.png")).unlink(missing_ok=True)
        tests = without_host(Path(plan.result("tests.xml")))
        write_summary(plan, found, outcomes, tests)
    print(f"\n{short_text(plan, found, outcomes, tests)}\nResults: {arguments.out}")
    sys.exit(any(outcome.is_failure for outcome in outcomes))


if __name__ == "__main__":
    main()
