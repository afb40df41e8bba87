#!/usr/bin/env python3
"""Build, on a machine without a GPU, what an offline GPU machine lacks: for its Python, PyTorch and GPU.

The extension itself comes compiled in FOLDER/extension, so that a GPU machine need not spend its time on that. Horovod
comes in two builds: FOLDER/nccl, where GPU tensors go over NCCL, and FOLDER/gloo, where they go through host memory,
without which several ranks cannot share one GPU. Beside them, in FOLDER, lie the small packages that Horovod and the
tests need; of all these, `make gpu-check` installs there what is missing. Needs g++, make, nvcc of the CUDA version of
that PyTorch, and a Python of the version asked for with its headers, which is looked for on PATH and among pyenv's. The
first run downloads some 3 GB (PyTorch with CUDA) and takes ten to twenty minutes on two cores. After an edit in csrc/,
`--only extension` renews the extension alone, in two to four minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import gpu_carried
import setup_environment
from toolkit import find_toolkit

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.11.0"
PARTS = ["horovod", "packages", "extension"]


def fail(message: str) -> NoReturn:
    sys.exit(f"make_wheels: {message}")


def candidates(asked: str) -> list[str]:
    """Where a Python may be: `asked` as a command or path, and where it is a version, pythonX.Y and pyenv's."""
    if not re.fullmatch(r"\d+\.\d+", asked):
        return [found for found in [shutil.which(asked)] if found]
    on_path = shutil.which(f"python{asked}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    return [*([on_path] if on_path else []), *map(str, sorted(pyenv.glob(f"{asked}.*/bin/python{asked}")))]


def find_python(asked: str) -> tuple[str, str]:
    """The path and the version X.Y of a Python that starts and has its headers."""
    probe = (
        "import sys, sysconfig, pathlib; print('%d.%d' % sys.version_info[:2],"
        " pathlib.Path(sysconfig.get_paths()['include'], 'Python.h').exists())"
    )
    reasons = []
    for path in candidates(asked):
        told = subprocess.run([path, "-c", probe], capture_output=True, text=True, check=False)
        version, _, has_headers = told.stdout.strip().partition(" ")
        if told.returncode == 0 and has_headers == "True":
            return path, version
        reasons.append(f"{path} {'has no Python.h' if told.returncode == 0 else 'does not start'}")
    fail(
        f"no Python {asked} with headers was found ({'; '.join(reasons) or 'none on PATH or among those of pyenv'}): "
        "install it, with its headers, or give PYTHON=/path/to/python"
    )


def build_horovod(environment: setup_environment.Environment, folder: Path) -> None:
    for transport, choice in {"nccl": "--nccl", "gloo": "--no-nccl"}.items():
        shutil.rmtree(folder / transport, ignore_errors=True)
        script = str(ROOT / "scripts" / "install_horovod.py")
        environment.run(script, choice, "--wheel-only", str(folder / transport), show=True)


def build_extension(environment: setup_environment.Environment, folder: Path, capability: str) -> None:
    """Compile grawa_hvd._C for one GPU into `folder`/extension, beside the key of the sources that it is made of."""
    target = folder / gpu_carried.EXTENSION
    toolkit = find_toolkit()
    variables = {"FORCE_CUDA": "1", "CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": capability}
    key = gpu_carried.sources_key(ROOT)
    with tempfile.TemporaryDirectory(prefix="grawa-extension-") as scratch, with_variables(variables):
        command = ["setup.py", "build_ext", "--build-lib", f"{scratch}/lib", "--build-temp", f"{scratch}/temp"]
        print(f"Compiling the extension for GPUs of capability {capability}: two to four minutes ...", flush=True)
        environment.run(*command)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(f"{scratch}/lib/grawa_hvd", target)
    for library in target.glob("*.so"):
        subprocess.run(["strip", "--strip-debug", str(library)], check=True)
    (target / gpu_carried.SOURCES).write_text(key)


@contextlib.contextmanager
def with_variables(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def download_small(environment: setup_environment.Environment, folder: Path, pyproject: str) -> None:
    for old in folder.glob("*.whl"):
        old.unlink()
    wanted = gpu_carried.small_requirements(pyproject)
    environment.run("-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder), *wanted)


def check_cuda(environment: setup_environment.Environment, torch: str) -> None:
    told = subprocess.run(
        [str(environment.python), "-c", "import json, torch; print(json.dumps(torch.version.cuda))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if told.returncode:
        fail(f"torch {torch} cannot be imported:\n{told.stderr}")
    if json.loads(told.stdout.splitlines()[-1]) is None:
        fail(f"torch {torch} is a CPU build: its Horovod would not fit a GPU machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a version as 3.12, or a path (default: this one)")
    parser.add_argument("--torch", default=TORCH, metavar="VERSION", help="of the GPU machine (default: %(default)s)")
    parser.add_argument("--gpu", default="9.0", metavar="CAPABILITY", help="of the GPU (default: %(default)s, Hopper)")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to make anew (default: all)")
    parser.add_argument("--into", type=Path, default=ROOT / "wheels", metavar="FOLDER", help="default: wheels")
    arguments = parser.parse_args()
    if find_toolkit() is None:
        fail("nvcc was not found: the build with NCCL needs the CUDA toolkit, though no GPU")
    python, version = find_python(arguments.python)
    environment = setup_environment.Environment(ROOT / f".venv-wheels-{version}-{arguments.torch}")
    pyproject, folder = (ROOT / "pyproject.toml").read_text(), arguments.into.absolute()
    with environment.locked():
        setup_environment.make_venv(environment, python)
        torch = setup_environment.install_torch(environment, arguments.torch, pyproject)
        check_cuda(environment, torch)
        folder.mkdir(parents=True, exist_ok=True)
        if "horovod" in arguments.only:
            build_horovod(environment, folder)
        if "packages" in arguments.only:
            download_small(environment, folder, pyproject)
        if "extension" in arguments.only:
            build_extension(environment, folder, arguments.gpu)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".whl", ".so"))
    print("\n".join(f"{path.stat().st_size / 1e6:7.2f} MB  {path.relative_to(folder)}" for path in files))
    total = sum(path.stat().st_size for path in files) / 1e6
    print(f"{arguments.into}: {len(files)} files, {total:.1f} MB, for Python {version} and torch {torch} with CUDA.")


if __name__ == "__main__":
    main()
