"""The stages of `make gpu-check`: what is run on a GPU machine, in which order, and where results go.

There are two calls, each worth having alone. The first shows whether the kernels are right and how fast they are; what
fails there can be mended before the second, which builds from source, reads counters, trains, and times rounds. In each
the order is that of value, so that a run that is cut off leaves what matters most.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gpu_carried
import install_horovod
from gpu_runner import Stage

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
TEST_PROCESSES = 6  # that share one GPU: more would wait for each other
DRY_RUN_SECONDS = 400


@dataclass(frozen=True)
class Plan:
    """What the stages are made from.

    Args:
        out: where the results go that are looked at first.
        rest: where all others go, which travel as one file.
        is_dry: whether this is a dry run: on the CPU, with tiny sizes.
        capability: of the GPU, as "9.0"; None in a dry run.
        nccl: variables under which Horovod's build with NCCL is imported.
        gloo: those of the build without.
        no_horovod: why Horovod cannot be imported, or the empty string.
        no_gloo: why there is no build without NCCL, or the empty string.
        no_extension: why no extension that was carried can be used, or the empty string.
    """

    out: Path
    rest: Path
    is_dry: bool
    capability: str | None
    nccl: dict[str, str]
    gloo: dict[str, str]
    no_horovod: str = ""
    no_gloo: str = ""
    no_extension: str = ""

    @property
    def device(self) -> str:
        return "cpu" if self.is_dry else "cuda"

    def result(self, name: str) -> str:
        """Only what was measured on a GPU is named so."""
        return str(self.out / self._named(name))

    def other_result(self, name: str) -> str:
        return str(self.rest / self._named(name))

    def _named(self, name: str) -> str:
        return f"{'dry_run' if self.is_dry else 'gpu'}_{name}"


def extension(plan: Plan) -> Stage:
    """Built only where none that fits was carried."""
    stage = _build(plan, "extension")
    is_there = not plan.no_extension or plan.is_dry
    print(f"extension: {plan.no_extension or 'the one that was carried'}", flush=True)
    return Stage("extension", _python("-m", "grawa_hvd"), ROOT, 60, plan.nccl) if is_there else stage


def build(plan: Plan) -> Stage:
    return _build(plan, "build")


def _build(plan: Plan, name: str) -> Stage:
    toolkit = install_horovod.cuda_home()
    missing = "a dry run takes the extension as it is" if plan.is_dry else "" if toolkit else "nvcc was not found"
    variables = {
        **plan.nccl,
        "FORCE_CUDA": "1",
        "CUDA_HOME": str(toolkit),
        "TORCH_CUDA_ARCH_LIST": str(plan.capability),
        "MAX_JOBS": str(_cores()),
        # torch builds with ninja, several files at a time, only where it is on PATH; a venv's may be off it.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = _python("setup.py", "build_ext", "--inplace", "--force")
    return Stage(name, command, ROOT, 240, variables, missing, is_optional=plan.is_dry)


def kernel_test_files() -> list[str]:
    """Those that run on each device that there is."""
    files = sorted((ROOT / "tests" / "single").glob("test_*.py"))
    return [str(file) for file in files if re.search(r"^from devices import", file.read_text(), re.MULTILINE)]


def tests(plan: Plan) -> Stage:
    chosen = "empty" if plan.is_dry else "cuda or not cpu"
    several = ["-n", str(TEST_PROCESSES)] if importlib.util.find_spec("xdist") and not plan.is_dry else []
    command = _python("-m", "pytest", "-q", "-p", "no:cacheprovider", *several, *kernel_test_files(), "-k", chosen)
    return Stage("tests", [*command, f"--junitxml={plan.result('tests.xml')}"], ROOT, 150, plan.nccl)


def kernels(plan: Plan) -> Stage:
    return _kernels(plan, "float32", ["huge", "gpt2", "resnet50", "resnet20", "tiny500"], 120)


def half_kernels(plan: Plan) -> Stage:
    return _kernels(plan, "bfloat16", ["huge", "gpt2"], 60)


def _kernels(plan: Plan, dtype: str, models: list[str], seconds: float) -> Stage:
    size = ["tiny500", "--threads", "1", "--seconds", "0.01"] if plan.is_dry else [*models, "--seconds", "0.2"]
    stem = "kernels" if dtype == "float32" else f"kernels_{dtype}"
    command = _python("-m", "benchmarks.kernels", "--device", plan.device, "--dtype", dtype, "--models", *size)
    command += ["--json", plan.result(f"{stem}.json"), "--plot", plan.other_result(f"{stem}.png")]
    return Stage(stem.replace("_", "-"), command, ROOT, seconds, plan.nccl)


def counters(plan: Plan) -> Stage:
    missing = "a dry run has no counters" if plan.is_dry else "" if shutil.which("ncu") else "ncu was not found"
    command = _python(str(SCRIPTS / "gpu_counters.py"), "--json", plan.result("counters.json"))
    return Stage("counters", command, ROOT, 120, plan.nccl, missing, is_optional=True)


def nccl(plan: Plan) -> Stage:
    command = [*_launch(1), str(SCRIPTS / "gpu_one_rank.py"), "--device", plan.device]
    command += ["--json", plan.result("one_rank.json"), *(["--settings", "2"] if plan.is_dry else [])]
    return Stage("one-rank", command, ROOT, 90, _one_thread(plan.nccl), plan.no_horovod)


def two_ranks(plan: Plan) -> Stage:
    """Two ranks on one GPU cannot send through NCCL: they send through host memory and Gloo."""
    command = [*_launch(2), str(ROOT / "examples" / "digits.py"), "--device", plan.device]
    command += ["--epochs", "2", "--period", "8"] if plan.is_dry else []
    # Relative, since the example keeps its command line.
    command += ["--json", Path(plan.other_result("train_two_ranks.json")).name]
    command += ["--plot", Path(plan.other_result("train_two_ranks.png")).name]
    return Stage("two-ranks", command, plan.rest, 90, _one_thread(plan.gloo), plan.no_horovod or plan.no_gloo)


def local_steps(plan: Plan) -> Stage:
    size = ["tiny500", "--seconds", "0.05"] if plan.is_dry else ["resnet20", "tiny500", "wrn28_10", "--seconds", "3"]
    command = [*_launch(1), "-m", "benchmarks.local_step", "--device", plan.device, "--alone", "--models", *size]
    command += ["--json", plan.result("local_step.json"), "--plot", plan.other_result("local_step.png")]
    return Stage("local-steps", command, ROOT, 90, _one_thread(plan.nccl), plan.no_horovod)


ROUNDS = {"rounds-torch-2": ("torch", 2), "rounds-4": ("horovod", 4), "rounds-torch-4": ("torch", 4),
          "rounds-8": ("horovod", 8)}  # fmt: skip
"""Stage → what its ranks are started by, and how many they are."""


def rounds(plan: Plan, name: str) -> Stage:
    transport, ranks = ROUNDS[name]
    first = next(other for other, (own, _) in ROUNDS.items() if own == transport)
    repeats = f"on the 2 ranks of a dry run it would be {first} again" if plan.is_dry and name != first else ""
    ranks = 2 if plan.is_dry else ranks
    torchrun = _python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    models = ["tiny500", "--seconds", "0.05"] if plan.is_dry else ["dense10", "resnet20", "wrn28_10", "--seconds", "5"]
    command = [*(torchrun if transport == "torch" else _launch(ranks)), "-m", "benchmarks.round"]
    command += ["--transport", transport, "--json", plan.other_result(f"{name}.json"), "--models", *models]
    missing = plan.no_horovod or plan.no_gloo or repeats
    return Stage(name, command, ROOT, 90, _one_thread(plan.gloo), missing, is_optional=bool(repeats))


def round_report(plan: Plan) -> Stage:
    found = [plan.other_result(f"{name}.json") for name in ROUNDS]
    command = _python("-m", "benchmarks.round_report", *found, "--json", plan.result("round.json"))
    command += ["--plot", plan.other_result("round.png")]
    return Stage("rounds-report", command, ROOT, 30, plan.gloo, plan.no_horovod or plan.no_gloo)


def cpu_kernels(plan: Plan) -> Stage:
    size = ["tiny500", "--threads", "1", "--seconds", "0.01"] if plan.is_dry else ["huge", "resnet50", "resnet20"]
    size += [] if plan.is_dry else ["--threads", "1", str(_cores()), "--seconds", "0.7"]
    command = _python("-m", "benchmarks.kernels", "--device", "cpu", "--models", *size)
    command += ["--json", plan.other_result("kernels_cpu.json"), "--plot", plan.other_result("kernels_cpu.png")]
    return Stage("kernels-cpu", command, ROOT, 90, plan.nccl)


def sanitizer(plan: Plan, tool: str, seconds: float) -> Stage:
    program = _python(str(SCRIPTS / "gpu_every_kernel.py"), "--device", plan.device)
    if plan.is_dry:
        return Stage(tool, program, ROOT, 60, plan.nccl)
    found = shutil.which("compute-sanitizer")
    toolkit = install_horovod.cuda_home()
    if found is None and toolkit is not None and (toolkit / "bin" / "compute-sanitizer").exists():
        found = str(toolkit / "bin" / "compute-sanitizer")
    missing = "" if found else "compute-sanitizer was not found"
    command = [str(found), "--tool", tool, "--error-exitcode", "1", *program]
    # Without torch's pool of memory, an access behind a tensor is one outside of an allocation.
    variables = {**plan.nccl, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Stage(tool, command, ROOT, seconds, variables, missing, is_optional=True)


CALLS: dict[int, dict[str, Callable[[Plan], Stage]]] = {
    1: {
        "extension": extension,
        "tests": tests,
        "kernels": kernels,
        "kernels-bfloat16": half_kernels,
        "memcheck": lambda plan: sanitizer(plan, "memcheck", 120),
    },
    2: {
        "extension": extension,
        "build": build,
        "counters": counters,
        "one-rank": nccl,
        "two-ranks": two_ranks,
        "local-steps": local_steps,
        **{name: functools.partial(rounds, name=name) for name in ROUNDS},
        "rounds-report": round_report,
        "racecheck": lambda plan: sanitizer(plan, "racecheck", 120),
        "synccheck": lambda plan: sanitizer(plan, "synccheck", 120),
        "kernels-cpu": cpu_kernels,
    },
}
STAGES = list(dict.fromkeys(name for stages in CALLS.values() for name in stages))


def stages(plan: Plan, names: list[str]) -> list[Stage]:
    """Those of the names, in the order in which they stand."""
    every = {name: make for call in CALLS.values() for name, make in call.items()}
    chosen = [every[name](plan) for name in names]
    # A dry run may share its processor with other things; the limits are those of a GPU machine.
    return [replace(stage, seconds=DRY_RUN_SECONDS) if plan.is_dry else stage for stage in chosen]


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


def _launch(ranks: int) -> list[str]:
    command = _python("-m", "horovod.runner.launch", "-np", str(ranks), "-H", f"localhost:{ranks}")
    return [*command, sys.executable]


def _one_thread(variables: dict[str, str]) -> dict[str, str]:
    return {**variables, "OMP_NUM_THREADS": "1"}


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def no_horovod(variables: dict[str, str]) -> str:
    """Why stages that need Horovod are skipped, or the empty string."""
    return "" if gpu_carried.imports(variables) else "Horovod cannot be imported here; the reason is above"
