#!/usr/bin/env python3
"""Compile the CUDA kernels on a machine without a GPU, load them, and show what each takes: registers, stack, spills.

Needs nvcc; without it this says so and succeeds. The first run makes an environment of its own with a CUDA build of
PyTorch: some 3 GB of download, 5 GB on the disk, two to ten minutes. Then the whole extension is built in a temporary
copy of the tree (five to twenty minutes on two cores), imported, and put through the tests of the kernels on the CPU.
A build of the same sources is not repeated. TORCH_CUDA_ARCH_LIST chooses the architectures; the default is all that
nvcc knows of those that setup.py lists. Any spilled register is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import ptxas
import setup_environment
from toolkit import find_toolkit

ROOT = Path(__file__).resolve().parent.parent
# The PyTorch whose CUDA is that of nvcc here: 13.0.
TORCH = "2.11.0"
TESTS = ["layer_norms", "pack", "blend", "layer_table", "step_kernels", "step_table"]
RESULT = "cuda-load.json"


def fail(message: str) -> NoReturn:
    sys.exit(f"cuda_load: {message}")


def environment_for_build(toolkit: Path, base: Mapping[str, str]) -> dict[str, str]:
    """FORCE_CUDA, since torch sees no GPU here, and the resource report of ptxas among the output."""
    appended = f"{base.get('NVCC_APPEND_FLAGS', '')} -Xptxas -v".strip()
    jobs = base.get("MAX_JOBS", str(os.cpu_count() or 2))
    return {**base, "FORCE_CUDA": "1", "CUDA_HOME": str(toolkit), "NVCC_APPEND_FLAGS": appended, "MAX_JOBS": jobs}


def build(environment: setup_environment.Environment, toolkit: Path) -> list[ptxas.Usage]:
    """Build in a copy: in the source tree the extension of another environment lies. Returns what ptxas told."""
    with tempfile.TemporaryDirectory(prefix="grawa-cuda-") as folder:
        tree = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(
            ".*", "build", "dist", "*.so", "__pycache__", "*.egg-info", "docs", "benchmarks"
        )
        shutil.copytree(ROOT, tree, ignore=ignored)
        command = [str(environment.python), "setup.py", "build_ext", "--inplace"]
        finished = subprocess.run(
            command,
            cwd=tree,
            env=environment_for_build(toolkit, os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if finished.returncode:
            print(finished.stdout[-8000:], file=sys.stderr)
            fail(f"the build ended with exit code {finished.returncode}; its output is above")
        package = environment.folder / "grawa-cuda" / "grawa_hvd"
        shutil.rmtree(package, ignore_errors=True)
        shutil.copytree(tree / "grawa_hvd", package)
    return ptxas.usages(finished.stdout)


def install(environment: setup_environment.Environment) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    setup_environment.make_venv(environment)
    torch = setup_environment.install_torch(environment, TORCH, pyproject)
    setup_environment.install_extras(environment, torch, ["test"], pyproject)


def build_if_changed(environment: setup_environment.Environment, toolkit: Path) -> list[ptxas.Usage]:
    package = sorted((ROOT / "grawa_hvd").rglob("*.py"))
    stamp = setup_environment.key(
        setup_environment.tree_key(ROOT),
        os.environ.get("TORCH_CUDA_ARCH_LIST", ""),
        *(part for file in package for part in (str(file.relative_to(ROOT)), file.read_bytes())),
    )
    result = environment.folder / RESULT
    if environment.stamps().get("cuda build") == stamp and result.exists():
        return [ptxas.Usage(**usage) for usage in json.loads(result.read_text())]
    with environment.step(
        "Compiling the extension with CUDA: five to twenty minutes on two cores, less for fewer architectures",
        "cuda build",
    ):
        found = build(environment, toolkit)
        result.write_text(json.dumps([asdict(usage) for usage in found], indent=1))
    environment.stamp("cuda build", stamp)
    return found


def check(environment: setup_environment.Environment) -> None:
    """Import, and the tests of the kernels, on the CPU: the GPU's run where there is one."""
    package = environment.folder / "grawa-cuda"
    program = "import torch, grawa_hvd._C as c; info = c.build_info(); print(*info['cuda_architectures'])"
    env = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(environment.python), "-c", program]
    loaded = subprocess.run(command, cwd=package, env=env, stdout=subprocess.PIPE, text=True, check=False)
    if loaded.returncode:
        fail("the extension cannot be imported; the reason is above")
    print(f"The extension loads; it has machine code for {loaded.stdout.strip()}.", flush=True)
    tests = [str(ROOT / "tests" / "single" / f"test_{name}.py") for name in TESTS]
    command = [str(environment.python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *tests]
    if subprocess.run(command, cwd=package, env=env, check=False).returncode:
        fail("the tests of the kernels fail with the CUDA build")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--venv", type=Path, default=ROOT / ".venv-cuda", metavar="DIR", help="where (default: %(default)s)"
    )
    parser.add_argument("--no-tests", action="store_true", help="build, load and report only")
    arguments = parser.parse_args()
    toolkit = find_toolkit()
    if toolkit is None:
        print("cuda_load: skipped, the CUDA kernels are NOT checked: nvcc was not found.")
        return
    environment = setup_environment.Environment(arguments.venv.absolute())
    with environment.locked():
        install(environment)
        found = build_if_changed(environment, toolkit)
        if not found:
            fail("ptxas told of no kernel: its output has changed, or nothing was compiled")
        names = ptxas.demangled(usage.kernel for usage in found)
        print(ptxas.table(found, names), flush=True)
        if not arguments.no_tests:
            check(environment)
    spills = ptxas.spilling(found, names)
    if spills:
        fail("; ".join(spills))


if __name__ == "__main__":
    main()
