"""The wheels of `make wheels` on the machine that they were carried to: unpacked beside its own packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

NCCL, GLOO, SMALL = "nccl", "gloo", "small"
NO_GLOO = "Horovod without NCCL is not here: run `make wheels` where there is a network, and carry wheels/ here"


def missing(wheels: list[Path]) -> list[Path]:
    """Those whose packages this Python has in no version."""

    def is_here(wheel: Path) -> bool:
        try:
            metadata.version(wheel.name.split("-")[0])
        except metadata.PackageNotFoundError:
            return False
        return True

    return [wheel for wheel in wheels if not is_here(wheel)]


def unpack(wheels: Path, into: Path) -> Path:
    """Install what is missing in `into`/small, and each build of Horovod in a folder of its own; returns `into`."""
    small = missing(sorted(wheels.glob("*.whl")))
    builds = {build: sorted(wheels.glob(f"{build}/*.whl")) for build in (NCCL, GLOO)}
    for folder, chosen in {SMALL: small, **builds}.items():
        shutil.rmtree(into / folder, ignore_errors=True)
        if chosen:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
            command += ["--disable-pip-version-check", "--target", str(into / folder), *map(str, chosen)]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"the wheels in {wheels / folder if folder != SMALL else wheels} do not fit this Python")
    return into


def has(site: Path, build: str) -> bool:
    """Whether Horovod's `build` was carried."""
    return (site / build / "horovod").is_dir()


def variables(site: Path, build: str, root: Path) -> dict[str, str]:
    """What makes a Python find the repository, a build of Horovod and the small packages, before what it has itself."""
    folders = [root, site / build, site / SMALL, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {"PYTHONPATH": os.pathsep.join(map(str, folders)), "PYTHONUNBUFFERED": "1"}


def imports(variables: dict[str, str]) -> bool:
    """Whether Horovod can be imported so; what stops it is printed."""
    command = [sys.executable, "-c", "import horovod.torch"]
    return subprocess.run(command, env={**os.environ, **variables}, check=False).returncode == 0
