"""Builds the extension with its CUDA kernels as C++ for the host: csrc/cuda against the stand-ins of tests/emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ROOT / "tests" / "emulator"
ABSENT = "cuda/absent.cpp"
ASSEMBLY = "cuda/assembly.cuh"
# A kernel's name with its template arguments, and what stands between the angle brackets of its launch.
LAUNCH = re.compile(r"(\w+(?:<[^<>;{}]*>)?)<<<(.*?)>>>\(", re.DOTALL)
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-DTORCH_EXTENSION_NAME=_C"),
    *("-Wall", "-Wno-unknown-pragmas"),  # those for nvcc
    "-U_FORTIFY_SOURCE",  # which takes a jump to another stack for an attack
]


def fail(message: str) -> NoReturn:
    sys.exit(f"emulator: {message}")


@dataclass(frozen=True)
class Variant:
    """A build of the extension that differs from the plain one in some files of csrc."""

    name: str
    flags: tuple[str, ...] = ()
    files: tuple[str, ...] = ()  # which take the flags; what includes them is compiled anew
    edits: Mapping[str, str] = field(default_factory=dict)  # file → its text here

    @property
    def changed(self) -> set[str]:
        return {*self.files, *self.edits}

    @property
    def extension(self) -> str:
        """Where the build lies in its folder."""
        return f"{self.name}/_C.so"


PLAIN = Variant("plain")


def in_plain_cpp(name: str, text: str) -> str:
    """A source with launches as calls, which is all of its syntax that is not C++; errors name its own lines."""
    if Path(name).suffix in (".cu", ".cuh"):
        if re.search(r"\basm\b", text) and name != ASSEMBLY:
            fail(f"csrc/{name} has inline assembly: its place is csrc/{ASSEMBLY}, with a stand-in in tests/emulator")
        text = LAUNCH.sub(r"emulator::configured(\1, \2)(", text)
    return f'#line 1 "csrc/{name}"\n{text}'


def read_sources(csrc: Path) -> dict[str, str]:
    """File below csrc → its text."""
    return {str(path.relative_to(csrc)): path.read_text() for path in sorted(csrc.rglob("*")) if path.is_file()}


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Make the files of a folder those. One that is there already, and the same, keeps its time."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if str(path.relative_to(folder)) not in texts:
            path.unlink()
    for name, text in texts.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def users_of(changed: set[str], texts: Mapping[str, str]) -> set[str]:
    """The files of csrc that are compiled otherwise when some change: these, and all that include one."""
    users = set(changed)
    while True:
        more = {name for name, text in texts.items() if not users.isdisjoint(INCLUDE.findall(text))} - users
        if not more:
            return users
        users |= more


def build_file(texts: Mapping[str, str], variants: Sequence[Variant]) -> str:
    """What ninja is to do in a folder with the sources in csrc/, and those that a variant edits in <its name>/csrc/."""
    includes = [EMULATOR / "shim", EMULATOR, "csrc", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    libraries = Path(torch.__file__).parent / "lib"
    lines = [
        f"flags = {' '.join(FLAGS)} -D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"includes = {' '.join(f'-I{include}' for include in includes)}",
        "rule compile",
        "  command = g++ $flags $own $includes -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = g++ -shared -fopenmp $in -o $out -L{libraries} -Wl,-rpath,{libraries} "
        "-ltorch -ltorch_cpu -lc10 -ltorch_python",
    ]
    runtime = [f"emulator/{path.stem}.o" for path in sorted(EMULATOR.glob("*.cpp"))]
    lines += [f"build emulator/{path.stem}.o: compile {path}" for path in sorted(EMULATOR.glob("*.cpp"))]
    sources = [name for name in texts if Path(name).suffix in (".cpp", ".cu") and name != ABSENT]
    for variant in variants:
        own = set(sources) if variant == PLAIN else users_of(variant.changed, texts) & set(sources)
        for name in sorted(own):
            folder = f"{variant.name}/csrc" if name in variant.edits else "csrc"
            lines.append(f"build {variant.name}/{name}.o: compile {folder}/{name}")
            lines.append(f"  own = {' '.join(variant.flags)} -I{variant.name}/csrc")
        objects = [f"{(variant if name in own else PLAIN).name}/{name}.o" for name in sources]
        lines.append(f"build {variant.extension}: link {' '.join([*objects, *runtime])}")
    return "\n".join(lines) + "\n"


def find_ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"
    found = str(beside) if beside.exists() else shutil.which("ninja")
    return found or fail("ninja was not found: pip install ninja")


def build(texts: Mapping[str, str], folder: Path, variants: Sequence[Variant], jobs: int) -> None:
    """Build the plain extension of some sources and its variants; what has not changed is not built again."""
    write_all(folder / "csrc", {name: in_plain_cpp(name, text) for name, text in texts.items()})
    for variant in variants:
        edits = {name: in_plain_cpp(name, text) for name, text in variant.edits.items()}
        write_all(folder / variant.name / "csrc", edits)
    (folder / "build.ninja").write_text(build_file(texts, [PLAIN, *variants]))
    command = [find_ninja(), "-C", str(folder), f"-j{jobs}", "--quiet"]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if finished.returncode:
        print(finished.stdout[-8000:], file=sys.stderr)
        fail("the extension cannot be built for the emulator; the reason is above")
