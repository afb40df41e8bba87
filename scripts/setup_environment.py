#!/usr/bin/env python3
"""Make a virtual environment in which grawa_hvd runs: PyTorch, Horovod, the extras asked for and the kernels.

Needs a bare Debian/Ubuntu with g++, make, python3-dev and python3-venv, nothing else. The first run takes three to ten
minutes on two cores, most of it the download of PyTorch and the build of Horovod. Each step leaves a stamp in the
environment and is redone only when what it depends on has changed: a run with nothing to do takes a fraction of a
second, and one that was interrupted is completed by the next.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import install_horovod

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.13.0"
OLDEST_PYTHON = (3, 10)
STAMPS, LOCK = "setup.json", "setup.lock"


def fail(message: str) -> NoReturn:
    sys.exit(f"setup_environment: {message}")


def missing_prerequisites() -> list[str]:
    """Everything that this machine lacks, so that one apt-get mends it all."""
    return install_horovod.missing_prerequisites() + missing_for_python()


def missing_for_python() -> list[str]:
    """What an environment needs in which nothing is built."""
    missing = []
    if sys.version_info[:2] < OLDEST_PYTHON:
        missing.append(f"Python >= {'.'.join(map(str, OLDEST_PYTHON))} (this is {sys.version.split()[0]})")
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        missing.append("the venv module with ensurepip (Debian/Ubuntu: apt-get install python3-venv)")
    return missing


def optional_dependencies(pyproject: str) -> dict[str, list[str]]:
    """The extras of a pyproject.toml: Python 3.10 has no TOML reader, and arrays of strings are Python literals."""
    section = re.search(r"^\[project\.optional-dependencies\]\n(.*?)(?=^\[|\Z)", pyproject, re.MULTILINE | re.DOTALL)
    entries = re.findall(
        r"^([\w-]+)\s*=\s*(\[.*?\])\s*$", section.group(1) if section else "", re.MULTILINE | re.DOTALL
    )
    return {name: ast.literal_eval(requirements) for name, requirements in entries}


def build_requirements(pyproject: str) -> list[str]:
    found = re.search(r"^requires\s*=\s*(\[.*?\])", pyproject, re.MULTILINE | re.DOTALL)
    requirements: list[str] = ast.literal_eval(found.group(1)) if found else []
    return requirements


def key(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        blob = part.encode() if isinstance(part, str) else part
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.hexdigest()[:16]


def tree_key(root: Path) -> str:
    """Names and contents of what the extension is built from."""
    files = [root / "pyproject.toml", root / "setup.py"]
    files += sorted(path for path in (root / "csrc").rglob("*") if path.is_file())
    return key(*(part for file in files for part in (str(file.relative_to(root)), file.read_bytes())))


@dataclass(frozen=True)
class Environment:
    """A virtual environment: where it is, what is in it, and which steps it has been through."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def version_of(self, package: str) -> str | None:
        """Version by the name of its metadata folder: importing torch to ask would take seconds."""
        found = next(self.folder.glob(f"lib/python*/site-packages/{package}-*.dist-info"), None)
        return found.name[len(package) + 1 : -len(".dist-info")] if found else None

    def stamps(self) -> dict[str, str]:
        try:
            stamps: dict[str, str] = json.loads((self.folder / STAMPS).read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return stamps

    def stamp(self, step: str, value: str | None) -> None:
        stamps = {name: old for name, old in self.stamps().items() if name != step}
        if value is not None:
            stamps[step] = value
        staged = self.folder / f"{STAMPS}.new"
        staged.write_text(json.dumps(stamps, indent=1, sort_keys=True))
        staged.replace(self.folder / STAMPS)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One set-up at a time; the system drops the lock of a process that dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"Another set-up of {self.folder} is running: waiting for it.", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def step(self, message: str, *names: str) -> Iterator[None]:
        """Announce and time a step, whose stamps are gone while it runs: so an interruption shows."""
        for name in names:
            self.stamp(name, None)
        print(f"{message} ...", flush=True)
        start = time.monotonic()
        yield
        print(f"  done in {time.monotonic() - start:.0f} s.", flush=True)

    def run(self, *arguments: str, show: bool = False) -> None:
        env = {**os.environ, "MAX_JOBS": str(os.cpu_count() or 2), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        output = None if show else subprocess.PIPE
        finished = subprocess.run(
            [str(self.python), *arguments], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        if finished.returncode:
            print((finished.stdout or "")[-8000:], file=sys.stderr)
            fail(f"`python {' '.join(arguments)}` failed with exit code {finished.returncode}; its output is above")


def make_venv(environment: Environment, python: str = sys.executable) -> None:
    if environment.python.exists() and "venv" in environment.stamps():
        return
    # Without its base Python an environment cannot be mended. `venv --clear` would delete the lock that is held.
    if environment.python.is_symlink() and not environment.python.exists():
        for child in environment.folder.iterdir():
            if child.name != LOCK:
                shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    probe = [str(environment.python), "-m", "pip", "--version"]
    if not environment.python.exists() or subprocess.run(probe, stdout=subprocess.DEVNULL).returncode:
        with environment.step(f"Making {environment.folder}: some 5 s"):
            subprocess.run([python, "-m", "venv", str(environment.folder)], check=True)
    environment.stamp("venv", python)


def install_torch(environment: Environment, asked: str, pyproject: str) -> str:
    """Install torch and what builds against it need. Returns the version that is now there."""
    requirement = "torch" if asked == "newest" else f"torch=={asked}"
    installed = environment.version_of("torch")
    # Of the stamp, the version is part: a torch that someone else has put in since is replaced.
    if installed is None or environment.stamps().get("torch") != key(requirement, installed):
        build = build_requirements(pyproject)
        with environment.step(f"Installing {requirement}: one to ten minutes, most of it download", "torch"):
            environment.run("-m", "pip", "install", "--quiet", requirement, "wheel", *build)
        installed = environment.version_of("torch")
        if installed is None:
            fail(f"pip installed no torch for {requirement}")
        environment.stamp("torch", key(requirement, installed))
    return installed


def install_horovod_for(environment: Environment, torch: str) -> None:
    script = ROOT / "scripts" / "install_horovod.py"
    stamp = key(torch, script.read_bytes())
    if environment.version_of("horovod") is not None and environment.stamps().get("horovod") == stamp:
        return
    with environment.step("Installing Horovod: one to four minutes if it has to be built, else 15 s", "horovod"):
        environment.run(str(script), show=True)
    environment.stamp("horovod", stamp)


def install_extras(environment: Environment, torch: str | None, names: list[str], pyproject: str) -> None:
    """Install extras of pyproject.toml; none of them replaces this torch, or without one brings torch along."""
    extras = optional_dependencies(pyproject)
    unknown = sorted(set(names) - set(extras))
    if unknown:
        fail(f"--extras: pyproject.toml has no {', '.join(unknown)}; it has {', '.join(sorted(extras))}")
    stamps = {f"extra {name}": key(torch or "no torch", *extras[name]) for name in names}
    due = [name for name in names if environment.stamps().get(f"extra {name}") != stamps[f"extra {name}"]]
    if not due:
        return
    # The constraint keeps any extra from replacing the torch that Horovod and the kernels are built against.
    constraints = environment.folder / "constraints.txt"
    constraints.write_text(f"torch=={torch}\n" if torch else "torch<0\n")
    requirements = [requirement for name in due for requirement in extras[name]]
    with environment.step(f"Installing the extras {', '.join(due)}: about half a minute", *(f"extra {n}" for n in due)):
        environment.run("-m", "pip", "install", "--quiet", "--constraint", str(constraints), *requirements)
    for name in due:
        environment.stamp(f"extra {name}", stamps[f"extra {name}"])


def extension_stamp(environment: Environment, torch: str) -> str:
    """The extension lies in the source tree, where the build of another environment replaces it: its time counts."""
    built = [f"{path.name} {path.stat().st_mtime_ns}" for path in sorted((ROOT / "grawa_hvd").glob("_C*.so"))]
    return key(torch, tree_key(ROOT), str(environment.version_of("grawa_hvd")), *built)


def install_package(environment: Environment, torch: str) -> None:
    built = any((ROOT / "grawa_hvd").glob("_C*.so"))
    if built and environment.stamps().get("package") == extension_stamp(environment, torch):
        return
    with environment.step("Building the kernels and installing grawa_hvd, editable: one to three minutes", "package"):
        environment.run("-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--editable", str(ROOT))
    environment.stamp("package", extension_stamp(environment, torch))


def install_all(environment: Environment, asked: str, extras: list[str]) -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    make_venv(environment)
    torch = install_torch(environment, asked, pyproject)
    install_horovod_for(environment, torch)
    install_extras(environment, torch, extras, pyproject)
    install_package(environment, torch)
    now = environment.version_of("torch")
    if now != torch:
        fail(f"a later step replaced torch {torch} by {now}: run this again, and report it")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="DIR", help="where (default: .venv)")
    parser.add_argument("--torch", default=TORCH, metavar="VERSION", help="or `newest` (default: %(default)s)")
    parser.add_argument("--extras-alone", action="store_true", help="no torch, no Horovod and no kernels")
    parser.add_argument("--extras", nargs="*", default=[], metavar="NAME", help="of pyproject.toml: examples lint test")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    missing = missing_for_python() if arguments.extras_alone else missing_prerequisites()
    if missing:
        fail("missing: " + "; ".join(missing))
    environment = Environment(arguments.venv.absolute())
    with environment.locked():
        if arguments.extras_alone:
            make_venv(environment)
            install_extras(environment, None, arguments.extras, (ROOT / "pyproject.toml").read_text())
        else:
            install_all(environment, arguments.torch, arguments.extras)
    print(f"{arguments.venv} is ready: torch {environment.version_of('torch') or 'is not in it'}.")


if __name__ == "__main__":
    main()
