"""The wheels of `make wheels` on the machine that they were carried to: unpacked beside its own packages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import install_horovod
import setup_environment

# PyTorch comes with numpy on a GPU machine; the libraries of the extra `examples` are as large, and not carried.
TOO_LARGE = {"numpy"}
BESIDE = ["tqdm", "pytest-xdist"]
NCCL, GLOO, SMALL, EXTENSION = "nccl", "gloo", "small", "extension"
SOURCES = "sources.key"  # what the extension was made of
NO_GLOO = "Horovod without NCCL is not here: run `make wheels` where there is a network, and carry wheels/ here"


def small_requirements(pyproject: str) -> list[str]:
    """What Horovod, the tests and the build of the extension need beside PyTorch, as pip takes it."""
    extras = setup_environment.optional_dependencies(pyproject)
    wanted = [*install_horovod.RUNTIME_REQUIREMENTS, *extras["test"], *BESIDE]
    wanted += setup_environment.build_requirements(pyproject)
    return [requirement for requirement in wanted if _name(requirement) not in TOO_LARGE]


def missing(wheels: list[Path], requirements: list[str]) -> list[Path]:
    """Those whose packages this Python lacks, or has in a version below that of the requirements."""
    least = {_name(requirement): _numbers(requirement.partition(">=")[2]) for requirement in requirements}

    def is_here(wheel: Path) -> bool:
        name = _name(wheel.name)
        try:
            return _numbers(metadata.version(name)) >= least.get(name, [])
        except metadata.PackageNotFoundError:
            return False

    return [wheel for wheel in wheels if not is_here(wheel)]


def _name(text: str) -> str:
    """The package that a requirement or the name of a wheel begins with."""
    found = re.match(r"[\w.]+(-[A-Za-z]\w*)*", text)
    return found[0].lower().replace("_", "-") if found else ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition(",")[0])]


def unpack(wheels: Path, into: Path, requirements: list[str]) -> Path:
    """Install what is missing in `into`/small, and each build of Horovod in a folder of its own; returns `into`."""
    small = missing(sorted(wheels.glob("*.whl")), requirements)
    builds = {build: sorted(wheels.glob(f"{build}/*.whl")) for build in (NCCL, GLOO)}
    for folder, chosen in {SMALL: small, **builds}.items():
        shutil.rmtree(into / folder, ignore_errors=True)
        if chosen:
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
            command += ["--disable-pip-version-check", "--target", str(into / folder), *map(str, chosen)]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"the wheels in {wheels / folder if folder != SMALL else wheels} do not fit this Python")
    return into


def put_extension(wheels: Path, root: Path) -> str:
    """Put the extension that was carried into the package; returns why there is none that fits, or the empty string."""
    library, key = wheels / EXTENSION / f"_C{suffix()}", wheels / EXTENSION / SOURCES
    if not library.exists() or not key.exists():
        return f"none for this Python was carried: {library.name}"
    if key.read_text() != sources_key(root):
        return "the one that was carried is of other sources: run `make wheels ARGS='--only extension'` again"
    shutil.copy(library, root / "grawa_hvd")
    return ""


def suffix() -> str:
    """What the names of extensions for this Python end in."""
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def sources_key(root: Path) -> str:
    """Of all that the extension is compiled from."""
    return setup_environment.tree_key(root)


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
