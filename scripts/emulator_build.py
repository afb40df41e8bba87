"""Builds the extension with its CUDA kernels as C++ for the host: csrc/cuda against the stand-ins of tests/emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
EMULATOR = ROOT / "tests" / "emulator"
ABSENT = "cuda/absent.cpp"
ASSEMBLY = "cuda/assembly.cuh"
# A kernel's name with its template arguments, and what stands between the angle brackets of its launch.
LAUNCH = re.compile(r"(\w+(?:<[^<>;{}]*>)?)<<<(.*?)>>>\(", re.DOTALL)
FLAGS = [
    "-std=c++20",
    "-O1",
    "-g1",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",  # for nvcc
    "-Wno-clobbered",
    "-U_FORTIFY_SOURCE",  # which takes a jump to another stack for an attack
    "-DTORCH_EXTENSION_NAME=_C",
]


def fail(message: str) -> NoReturn:
    sys.exit(f"emulator: {message}")


@dataclass(frozen=True)
class Variant:
    """A build of the extension: which sources of csrc/cuda it compiles for itself, and how."""

    name: str
    flags: tuple[str, ...] = ()
    sources: tuple[str, ...] | None = None  # None: all there are; others are those of the first variant


def in_plain_cpp(text: str) -> str:
    """The source with launches as calls, which is all of its syntax that is not C++."""
    return LAUNCH.sub(r"emulator::configured(\1, \2)(", text)


def mirror(csrc: Path, to: Path) -> None:
    """Copy a folder of sources, made plain C++. A file that is there already, and the same, keeps its time."""
    wanted = {path.relative_to(csrc): path for path in csrc.rglob("*") if path.is_file()}
    for name, path in wanted.items():
        text = path.read_text()
        if path.suffix in (".cu", ".cuh"):
            if re.search(r"\basm\b", text) and str(name) != ASSEMBLY:
                fail(f"csrc/{name} has inline assembly: its place is csrc/{ASSEMBLY}, with a stand-in in tests/emulator")
            text = in_plain_cpp(text)
        write_if_changed(to / name, f'#line 1 "csrc/{name}"\n{text}')
    for path in to.rglob("*"):
        if path.is_file() and path.relative_to(to) not in wanted:
            path.unlink()


def write_if_changed(path: Path, text: str) -> None:
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def sources(csrc: Path) -> list[str]:
    names = [path.relative_to(csrc) for path in csrc.rglob("*") if path.suffix in (".cpp", ".cu")]
    return sorted(str(name) for name in names if str(name) != ABSENT)


def build_file(folder: Path, variants: Sequence[Variant]) -> str:
    """What ninja is to do in a folder that has the sources in csrc/."""
    import torch
    from torch.utils import cpp_extension

    includes = [EMULATOR / "shim", EMULATOR, "csrc", *cpp_extension.include_paths(), sysconfig.get_paths()["include"]]
    libraries = Path(torch.__file__).parent / "lib"
    flags = [*FLAGS, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", *(f"-I{i}" for i in includes)]
    lines = [
        f"flags = {' '.join(flags)}",
        "rule compile",
        "  command = g++ $flags $more -MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = g++ -shared -fopenmp $in -o $out -L{libraries} -Wl,-rpath,{libraries} "
        "-ltorch -ltorch_cpu -lc10 -ltorch_python",
    ]
    made: set[str] = set()

    def compiled(source: Path | str, stem: str, more: Sequence[str] = ()) -> str:
        if stem not in made:
            lines.extend([f"build {stem}.o: compile {source}", f"  more = {' '.join(more)}"])
            made.add(stem)
        return f"{stem}.o"

    for variant in variants:
        objects = [compiled(path, f"emulator/{path.stem}") for path in sorted(EMULATOR.glob("*.cpp"))]
        for source in sources(folder / "csrc"):
            own = variant.sources is None or source in variant.sources
            owner = variant if own else variants[0]
            objects.append(compiled(f"csrc/{source}", f"{owner.name}/{source}", owner.flags))
        lines.append(f"build {extension(folder, variant).relative_to(folder)}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


def extension(folder: Path, variant: Variant) -> Path:
    return folder / variant.name / "_C.so"


def find_ninja() -> str:
    beside = Path(sys.executable).parent / "ninja"
    found = str(beside) if beside.exists() else shutil.which("ninja")
    if found is None:
        fail("ninja was not found: pip install ninja")
    return found


def build(tree: Path, folder: Path, variants: Sequence[Variant], jobs: int) -> None:
    """Build the variants of the extension of a source tree in a folder; what has not changed is not built again."""
    mirror(tree / "csrc", folder / "csrc")
    write_if_changed(folder / "build.ninja", build_file(folder, variants))
    finished = subprocess.run(
        [find_ninja(), "-C", str(folder), f"-j{jobs}", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if finished.returncode:
        print(finished.stdout[-8000:], file=sys.stderr)
        fail("the extension cannot be built for the emulator; the reason is above")
