#!/usr/bin/env python3
"""Compile the CUDA kernels on a machine without a GPU, and show what each takes: registers, stack, spills.

Needs nvcc; without it this says so and succeeds. Downloads nothing: what csrc/cuda includes of PyTorch is in its CPU
builds too, so this runs in the environment of the tests, in two to four minutes on two cores. TORCH_CUDA_ARCH_LIST
chooses the architectures (default: 9.0+PTX); the sources and flags are those of setup.py. Errors are: what does not
compile, a spilled register, and a function of absent.cpp, which stands in for the kernels in CPU builds, that the
kernels do not define. Linking and loading take a CUDA build of PyTorch: that is cuda_load.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from distutils.core import run_setup  # setuptools provides it, to read a setup.py
from pathlib import Path
from typing import Any, NoReturn

import ptxas
from toolkit import find_toolkit
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
ABSENT = "csrc/cuda/absent.cpp"
ARCHITECTURES = "9.0+PTX"


def fail(message: str) -> NoReturn:
    sys.exit(f"cuda_check: {message}")


def code_flags(architectures: str) -> list[str]:
    """nvcc's flags for a list as in TORCH_CUDA_ARCH_LIST, numbers alone: `8.0;9.0+PTX`."""
    flags = []
    for name in re.split(r"[;\s]+", architectures.strip()):
        found = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if found is None:
            fail(f"TORCH_CUDA_ARCH_LIST={architectures!r}: {name!r} is not of the form 9.0 or 9.0+PTX")
        number = found[1] + found[2]
        codes = [f"sm_{number}", *([f"compute_{number}"] if found[3] else [])]
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def read_extension(toolkit: Path) -> Any:
    """The extension as setup.py describes it for a CUDA build."""
    os.environ["FORCE_CUDA"] = "1"
    cpp_extension.CUDA_HOME = str(toolkit)  # which a CPU build of PyTorch leaves out
    os.chdir(ROOT)
    return run_setup("setup.py", stop_after="init").ext_modules[0]


def commands(extension: Any, toolkit: Path, objects: Path, architectures: str) -> dict[str, list[str]]:
    """Source of csrc/cuda → the command that compiles it; absent.cpp is one of them."""
    cxx, nvcc = (extension.extra_compile_args[name] for name in ("cxx", "nvcc"))
    # The file that this macro leaves out is the one that CPU builds of torch lack: it tells apart how Windows links.
    common = ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", *(f"-I{include}" for include in extension.include_dirs)]
    standard = next(flag for flag in cxx if flag.startswith("-std="))
    for_cpp = [os.environ.get("CXX", "g++"), "-fPIC", *cxx, *common]
    for_cu = [str(toolkit / "bin" / "nvcc"), *cpp_extension.COMMON_NVCC_FLAGS, *nvcc, standard, *common]
    for_cu += ["-Xcompiler=-fPIC", "-Xptxas=-v", *code_flags(architectures)]
    sources = [name for name in extension.sources if name.startswith("csrc/cuda/")]
    return {
        name: [*(for_cu if name.endswith(".cu") else for_cpp), "-c", name, "-o", str(object_of(name, objects))]
        for name in [*sources, ABSENT]
    }


def object_of(source: str, objects: Path) -> Path:
    return objects / f"{Path(source).name}.o"


def compile_all(wanted: dict[str, list[str]]) -> str:
    """Run the commands, some at a time. Returns what they printed."""

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)

    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 2))
    with ThreadPoolExecutor(jobs) as pool:
        finished = dict(zip(wanted, pool.map(run, wanted.values()), strict=True))
    broken = [name for name, process in finished.items() if process.returncode]
    for name in broken:
        print(finished[name].stdout[-8000:], file=sys.stderr)
    if broken:
        fail(f"{', '.join(broken)} cannot be compiled; the reason is above")
    return "\n".join(process.stdout for process in finished.values())


def defined(objects: list[Path]) -> set[str]:
    """The functions of ours that object files define for others, demangled."""
    command = ["nm", "--defined-only", "--extern-only", "--demangle", *map(str, objects)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"^\w+ T (grawa::.+)$", told, re.MULTILINE))


def check(toolkit: Path, architectures: str) -> None:
    extension = read_extension(toolkit)
    with tempfile.TemporaryDirectory(prefix="grawa-cuda-") as scratch:
        wanted = commands(extension, toolkit, Path(scratch), architectures)
        found = ptxas.usages(compile_all(wanted))
        kernels = [object_of(name, Path(scratch)) for name in wanted if name != ABSENT]
        undefined = defined([object_of(ABSENT, Path(scratch))]) - defined(kernels)
    if not found:
        fail("ptxas told of no kernel: its output has changed, or nothing was compiled")
    names = ptxas.demangled(usage.kernel for usage in found)
    print(ptxas.table(found, names))
    if undefined:
        fail(f"absent.cpp has what no other file of csrc/cuda defines: {', '.join(sorted(undefined))}")
    spills = ptxas.spilling(found, names)
    if spills:
        fail("; ".join(spills))
    print(f"cuda_check: {len(wanted) - 1} files of csrc/cuda compile for {architectures}, without a spilled register.")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    toolkit = find_toolkit()
    if toolkit is None:
        print("cuda_check: skipped, the CUDA kernels are NOT checked: nvcc was not found.")
        return
    if shutil.which("nm") is None:
        fail("nm was not found (Debian/Ubuntu: apt-get install binutils)")
    check(toolkit, os.environ.get("TORCH_CUDA_ARCH_LIST", ARCHITECTURES))


if __name__ == "__main__":
    main()
