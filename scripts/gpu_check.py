#!/usr/bin/env python3
"""On a machine with a GPU: test and time the kernels, build, train; with no network, in two calls of minutes.

Needs PyTorch with CUDA in the Python that runs this. The extension, Horovod and small packages that this Python lacks
are taken from the wheels that `make wheels` has made, into build/gpu-check; nothing is installed elsewhere. `--call 1`
shows whether the kernels are right and how fast; `--call 2` builds from source, reads counters, trains and times
rounds. The failure of one stage stops no other. Results go to the folder OUT, 8 files named gpu_* a call at most: facts
and outcomes (gpu_summary_CALL.json), the output of all stages (gpu_log_CALL.txt), the stages' figures, and the rest in
gpu_rest_CALL.tar. The exit code is 0 if no stage failed.

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
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import gpu_carried
import gpu_plan
from gpu_plan import ROOT, SCRIPTS, Plan
from gpu_runner import Outcome, Runner


def fail(message: str) -> NoReturn:
    sys.exit(f"gpu_check: {message}")


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


def pack_rest(plan: Plan, call: str) -> None:
    """The results that are not looked at first, in one file."""
    with tarfile.open(plan.result(f"rest_{call}.tar"), "w") as archive:
        for path in sorted(plan.rest.iterdir()):
            archive.add(path, path.name)


def write_summary(plan: Plan, call: str, found: dict[str, Any], outcomes: list[Outcome], tests: dict[str, int]) -> None:
    summary = {"is_gpu_result": not plan.is_dry, **found, "stages": [asdict(outcome) for outcome in outcomes]}
    Path(plan.result(f"summary_{call}.json")).write_text(json.dumps({**summary, "tests": tests}, indent=1) + "\n")


def short_text(plan: Plan, found: dict[str, Any], outcomes: list[Outcome], tests: dict[str, int]) -> str:
    gpu = "DRY RUN on the CPU: nothing here is a result of a GPU" if plan.is_dry else found["gpu"]["name"]
    lines = [f"{gpu}, torch {found['versions']['torch']}, Horovod {found['versions']['horovod']}"]
    for outcome in outcomes:
        lines.append(f"{outcome.name:18}{outcome.result:10}{outcome.seconds:5.0f} s  {outcome.reason}".rstrip())
    if tests:
        lines.append("tests: " + ", ".join(f"{count} {name}" for name, count in tests.items()))
    return "\n".join(lines)


def plan_of(arguments: argparse.Namespace) -> tuple[Plan, dict[str, Any]]:
    """What can be run here; the facts beside it."""
    requirements = gpu_carried.small_requirements((ROOT / "pyproject.toml").read_text())
    site = gpu_carried.unpack(arguments.wheels, arguments.site.absolute(), requirements)
    nccl, gloo = (gpu_carried.variables(site, build, ROOT) for build in (gpu_carried.NCCL, gpu_carried.GLOO))
    no_horovod = gpu_plan.no_horovod(nccl)
    if no_horovod and gpu_carried.has(site, gpu_carried.GLOO):
        print("gpu_check: Horovod's build with NCCL does not load here: everything runs with the one without.")
        nccl, no_horovod = gloo, gpu_plan.no_horovod(gloo)
    found = facts(nccl)
    if found["gpu"] is None and not arguments.dry_run:
        fail("PyTorch sees no GPU here. --dry-run exercises the stages on the CPU; its figures are no results.")
    if arguments.dry_run:
        found["gpu"] = None
    no_extension = "" if arguments.dry_run else gpu_carried.put_extension(arguments.wheels, ROOT)
    no_gloo = "" if arguments.dry_run or gpu_carried.has(site, gpu_carried.GLOO) else gpu_carried.NO_GLOO
    capability = None if arguments.dry_run else found["gpu"]["capability"]
    rest = site / "rest"
    shutil.rmtree(rest, ignore_errors=True)
    for folder in (rest, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    out = arguments.out.absolute()
    return Plan(out, rest, arguments.dry_run, capability, nccl, gloo, no_horovod, no_gloo, no_extension), found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="OUT", help="folder of the results")
    add("--call", type=int, nargs="+", choices=gpu_plan.CALLS, default=[1], help="which half, or both (default: 1)")
    add("--wheels", type=Path, default=ROOT / "wheels", metavar="FOLDER", help="of `make wheels` (default: wheels)")
    add("--site", type=Path, default=ROOT / "build" / "gpu-check", metavar="FOLDER", help="where they are unpacked")
    add("--minutes", type=float, help="for everything (default: 9; a dry run, for which no machine is lent: 30)")
    add("--stages", nargs="+", choices=gpu_plan.STAGES, metavar="STAGE",
        help=f"instead of those of the call, of {', '.join(gpu_plan.STAGES)}")  # fmt: skip
    add("--dry-run", action="store_true", help="on the CPU, with tiny sizes; no results")
    return parser.parse_args()


def main() -> None:
    arguments, begin = parse(), time.monotonic()
    plan, found = plan_of(arguments)
    names = arguments.stages or list(dict.fromkeys(name for call in arguments.call for name in gpu_plan.CALLS[call]))
    call = "_".join(map(str, arguments.call))
    log = Path(plan.result(f"log_{call}.txt"))
    minutes = arguments.minutes or (30 if arguments.dry_run else 9)
    runner = Runner(log, 60 * minutes - (time.monotonic() - begin))
    outcomes = [Outcome("unpack", "passed", time.monotonic() - begin, "", False)]
    for stage in gpu_plan.stages(plan, names):
        outcomes.append(runner.run(stage))
        tests = without_host(Path(plan.result("tests.xml")))
        write_summary(plan, call, found, outcomes, tests)
        pack_rest(plan, call)
    print(f"\n{short_text(plan, found, outcomes, tests)}\nResults: {arguments.out}")
    sys.exit(any(outcome.is_failure for outcome in outcomes))


if __name__ == "__main__":
    main()
