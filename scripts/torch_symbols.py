"""Whether a link against a CUDA build of PyTorch would find all that the extension's object files leave to it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "GRAWA_CUDA_TORCH"
# Namespaces of ours and of PyTorch: what else is left is Python's, CUDA's or the compiler's.
WATCHED = re.compile(r"\b(grawa|at|c10|torch|caffe2)::|\bTHP\w+")


def find_cuda_torch() -> Path | None:
    """The folder `torch` of a CUDA build: GRAWA_CUDA_TORCH, or of an environment that other scripts have made here."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    environments = [*sorted(ROOT.glob(".venv-wheels-*")), ROOT / ".venv-cuda"]
    found = [folder for each in environments for folder in each.glob("lib/python*/site-packages/torch")]
    return next((folder for folder in reversed(found) if (folder / "lib" / "libtorch_cuda.so").exists()), None)


def libraries(torch: Path) -> list[Path]:
    names = ("torch", "torch_cpu", "torch_cuda", "torch_python", "c10", "c10_cuda")
    return [torch / "lib" / f"lib{name}.so" for name in names]


def missing(objects: Iterable[Path], libraries: Iterable[Path]) -> list[str]:
    """The symbols of ours and of PyTorch that object files need and nothing defines, demangled."""
    objects = list(objects)
    needed = _symbols(["--undefined-only"], objects, "U")
    defined = _symbols(["--defined-only"], objects) | _symbols(["--dynamic", "--defined-only"], libraries)
    left = sorted(needed - defined)
    told = subprocess.run(["c++filt"], input="\n".join(left), capture_output=True, text=True, check=True).stdout
    return [name for name in told.splitlines() if WATCHED.search(name)]


def _symbols(options: list[str], files: Iterable[Path], kind: str = r"\w") -> set[str]:
    told = subprocess.run(["nm", *options, *map(str, files)], capture_output=True, text=True, check=True).stdout
    return set(re.findall(rf"^[0-9a-f ]* {kind} ([^\s@]+)", told, re.MULTILINE))
