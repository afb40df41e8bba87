#!/usr/bin/env python3
"""Make an sdist as on a machine without nvcc, build a wheel from it alone, and run the package from that wheel.

Everything happens in a temporary folder, with the PyTorch and the setuptools of the Python that runs this, and without
a network. Takes one to three minutes on two cores: the kernels are compiled.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
# Builds leave notes in the folder of their sources, and what is built there must not get into the sdist.
NOT_SOURCES = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "wheels", "*.egg-info", "*.so", "__pycache__")
MAKE_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
USE_KERNELS = """
import torch, grawa_hvd
from grawa_hvd import _C
assert _C.__file__.startswith({site!r}), _C.__file__
assert grawa_hvd.ops.layer_norms([torch.full((4,), 3.0)]).tolist() == [6.0]
"""


def fail(message: str) -> NoReturn:
    sys.exit(f"dist_check: {message}")


def run(what: str, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What this Python prints, given arguments; the check fails where it does."""
    print(f"{what} ...", flush=True)
    command = [sys.executable, *arguments]
    finished = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if finished.returncode:
        print((finished.stdout + finished.stderr)[-8000:], file=sys.stderr)
        fail(f"{what}: failed; the reason is above")
    return finished.stdout


def check(folder: Path) -> str:
    source, site, wheels = folder / "source", folder / "site", folder / "wheels"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCES, symlinks=True)
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    sdist = run("Making the sdist", "-c", MAKE_SDIST, str(folder), cwd=source, env=bare).splitlines()[-1]
    shutil.rmtree(source)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(
        f"Building a wheel from {sdist}",
        *pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(wheels), sdist,
        cwd=folder, env=env,
    )  # fmt: skip
    wheel = next(wheels.glob("*.whl"))
    run(
        f"Installing {wheel.name}",
        *pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel),
        cwd=folder, env=env,
    )  # fmt: skip
    from_wheel = {**env, "PYTHONPATH": str(site)}
    run("Using the kernels", "-c", USE_KERNELS.format(site=str(site)), cwd=folder, env=from_wheel)
    print(run("Asking what is there", "-m", "grawa_hvd", cwd=folder, env=from_wheel).strip())
    return f"{wheel.name} of {wheel.stat().st_size / 1e6:.2f} MB was built from {sdist} alone and works."


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="grawa-dist-") as folder:
        print(f"dist_check: {check(Path(folder).resolve())}")


if __name__ == "__main__":
    main()
