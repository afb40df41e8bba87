"""What ptxas says of the kernels that it compiles with `-v`: registers, stack, spills and shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """What one kernel takes on one architecture, as ptxas tells it."""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spills: int
    shared: int


def usages(log: str) -> list[Usage]:
    """The kernels in the output of `nvcc -Xptxas -v`, under mangled names. Lines of other compilers are ignored."""
    found = []
    pattern = re.compile(
        r"Compiling entry function '(?P<kernel>\S+)' for '(?P<architecture>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    for match in pattern.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Usage(
                kernel=match["kernel"],
                architecture=match["architecture"],
                registers=int(match["registers"]),
                stack=int(match["stack"]),
                spills=int(match["stores"]) + int(match["loads"]),
                shared=int(shared.group(1)) if shared else 0,
            )
        )
    return found


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Mangled → short readable name; the mangled one where no c++filt is found."""
    names = sorted(set(names))
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    told = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: short_name(line) for name, line in zip(names, told.splitlines(), strict=True)}


def short_name(signature: str) -> str:
    """`void grawa::cuda::(anonymous namespace)::f<c10::Half, true>(View, ...)` → `f<Half, true>`."""
    name = signature.replace("(anonymous namespace)::", "").replace("(bool)1", "true").replace("(bool)0", "false")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:place]
            break
    name = name.removeprefix("void ")
    return re.sub(r"\b\w+::", "", name)


def table(found: Iterable[Usage], names: Mapping[str, str]) -> str:
    """A row per kernel, a column per architecture: registers, and what else there is beside them."""
    rows: dict[str, dict[str, Usage]] = {}
    for usage in found:
        rows.setdefault(names.get(usage.kernel, usage.kernel), {})[usage.architecture] = usage
    architectures = sorted(
        {name for row in rows.values() for name in row}, key=lambda name: int(re.sub(r"\D", "", name))
    )
    width = max([len("kernel"), *map(len, rows)])
    lines = [f"{'kernel':{width}}  " + "  ".join(f"{name:>7}" for name in architectures)]
    for kernel, row in sorted(rows.items()):
        cells = [_cell(row.get(name)) for name in architectures]
        lines.append(f"{kernel:{width}}  " + "  ".join(f"{cell:>7}" for cell in cells))
    total = [sum(row[name].spills for row in rows.values() if name in row) for name in architectures]
    lines.append(f"{'bytes spilled':{width}}  " + "  ".join(f"{spills:>7}" for spills in total))
    return "\n".join(lines)


def _cell(usage: Usage | None) -> str:
    if usage is None:
        return "-"
    return f"{usage.registers}" + (f"+{usage.stack}B" if usage.stack else "")


def spilling(found: Iterable[Usage], names: Mapping[str, str]) -> list[str]:
    return [
        f"{names.get(usage.kernel, usage.kernel)} spills {usage.spills} bytes on {usage.architecture}"
        for usage in found
        if usage.spills
    ]
