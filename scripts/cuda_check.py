#!/usr/bin/env python3
"""Compile the CUDA kernels on a machine without a GPU, and check what the compiler made of them.

Needs nvcc; without it this says so and succeeds. What csrc/cuda includes of PyTorch is in its CPU builds too, so this
runs in the environment of the tests, in two to four minutes on two cores. TORCH_CUDA_ARCH_LIST chooses the
architectures (default: 9.0+PTX); the sources and flags are those of setup.py. Errors are: what does not compile, a
spilled register, a function of absent.cpp, which stands in for the kernels in CPU builds, that the kernels do not
define, and code for sm_90 that is beyond the limits of kernel_limits.py. Where a CUDA build of PyTorch is at hand (an
environment of make_wheels.py or cuda_load.py, or its folder `torch` in GRAWA_CUDA_TORCH), the whole extension is
compiled for it, and a symbol that neither has is an error as well. Loading it is cuda_load.py.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from distutils.core import run_setup  # setuptools provides it, to read a setup.py
from pathlib import Path
from typing import Any, NoReturn

import kernel_limits
import ptxas
import sass
import torch
import torch_symbols
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


def against(extension: Any, torch_folder: Path) -> None:
    """Make the extension one for another PyTorch, all of whose sources are compiled."""
    here = str(Path(torch.__file__).parent)
    extension.include_dirs = [include.replace(here, str(torch_folder)) for include in extension.include_dirs]
    extension.include_dirs.append(sysconfig.get_paths()["include"])


def commands(extension: Any, sources: Sequence[str], toolkit: Path, objects: Path, code: str) -> dict[str, list[str]]:
    """Source → the command that compiles it, for the architectures of `code`."""
    cxx, nvcc = (extension.extra_compile_args[name] for name in ("cxx", "nvcc"))
    # The file that this macro leaves out is the one that CPU builds of torch lack: it tells apart how Windows links.
    common = ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", "-DTORCH_EXTENSION_NAME=_C"]
    common += [f"-I{include}" for include in extension.include_dirs]
    standard = next(flag for flag in cxx if flag.startswith("-std="))
    for_cpp = [os.environ.get("CXX", "g++"), "-fPIC", *cxx, *common]
    for_cu = [str(toolkit / "bin" / "nvcc"), *cpp_extension.COMMON_NVCC_FLAGS, *nvcc, standard, *common]
    for_cu += ["-Xcompiler=-fPIC", "-Xptxas=-v", *code_flags(code), "--keep", f"--keep-dir={objects}"]
    return {
        name: [*(for_cu if name.endswith(".cu") else for_cpp), "-c", name, "-o", str(object_of(name, objects))]
        for name in sources
    }


def object_of(source: str, objects: Path) -> Path:
    return objects / f"{source.replace('/', '-')}.o"


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
    linked = torch_symbols.find_cuda_torch()
    if linked is not None:
        against(extension, linked)
    kernels = [name for name in extension.sources if name.startswith("csrc/cuda/")]
    sources = kernels if linked is None else extension.sources
    with tempfile.TemporaryDirectory(prefix="grawa-cuda-") as scratch:
        objects = Path(scratch)
        log = compile_all(commands(extension, [*sources, ABSENT], toolkit, objects, architectures))
        of_kernels, of_all, absent = (
            [object_of(name, objects) for name in names] for names in (kernels, sources, [ABSENT])
        )
        undefined = defined(absent) - defined(of_kernels)
        if undefined:
            fail(f"absent.cpp has what no other file of csrc/cuda defines: {', '.join(sorted(undefined))}")
        check_code(log, toolkit, sorted(objects.glob("*sm_90.cubin")))
        check_link(of_all, linked)
    print(f"cuda_check: {len(kernels)} files of csrc/cuda compile for {architectures}, without a spilled register.")


def check_code(log: str, toolkit: Path, cubins: list[Path]) -> None:
    """What ptxas has told, and what is in the code for sm_90."""
    found = ptxas.usages(log)
    if not found:
        fail("ptxas told of no kernel: its output has changed, or nothing was compiled")
    names = ptxas.demangled(usage.kernel for usage in found)
    print(ptxas.table(found, names))
    faults = ptxas.spilling(found, names)
    tool = sass.find_disassembler(toolkit)
    if tool is None or not cubins:
        missing = "code for sm_90" if tool else f"nvdisasm (pip install {sass.PACKAGE})"
        print(f"cuda_check: skipped, the machine code is NOT checked: there is no {missing}.")
    else:
        codes = sass.codes(sass.disassembled(tool, cubins))
        faults += kernel_limits.violations(found, codes, names)
        print(f"cuda_check: the code of {len(codes)} kernels for sm_90 is read.")
    if faults:
        fail("; ".join(faults))


def check_link(objects: list[Path], linked: Path | None) -> None:
    """Whether PyTorch has what the extension needs of it."""
    if linked is None:
        print("cuda_check: skipped, the link is NOT checked: no CUDA build of PyTorch is at hand.")
        return
    missing = torch_symbols.missing(objects, torch_symbols.libraries(linked))
    if missing:
        fail(f"{linked} and the extension both lack: {'; '.join(missing)}")
    print(f"cuda_check: {len(objects)} object files need nothing that the extension and a CUDA build of PyTorch lack.")


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
