"""What the machine code of kernels shows, as nvdisasm prints it, and how many blocks a multiprocessor holds."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SECTION = re.compile(r"^\.text\.(\S+):$")
# `/*00a0*/  @!P0 LDG.E.128 R4, …`: its name alone.
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
PACKAGE = "nvidia-cuda-nvdisasm"


@dataclass(frozen=True)
class Code:
    """How often a kernel's code has what matters for its speed."""

    kernel: str
    word_loads: int  # of 128 bits, from global memory
    word_stores: int
    local: int  # accesses to memory in place of registers
    fences: int  # sequentially consistent ones, each of which empties the first-level cache


def codes(disassembly: str) -> list[Code]:
    """The kernels in the output of `nvdisasm -c`, under mangled names."""
    found: dict[str, list[str]] = {}
    instructions: list[str] = []
    for line in disassembly.splitlines():
        if section := SECTION.match(line):
            instructions = found.setdefault(section[1], [])
        elif instruction := INSTRUCTION.match(line):
            instructions.append(instruction[1])
    return [_code(kernel, names) for kernel, names in found.items()]


def _code(kernel: str, names: list[str]) -> Code:
    def count(pattern: str) -> int:
        return sum(re.match(pattern, name) is not None for name in names)

    return Code(kernel, count(r"LDG\..*\b128\b"), count(r"STG\..*\b128\b"), count("LDL|STL"), count(r"MEMBAR\.SC"))


def resident_blocks(registers: int, shared: int, threads: int = 256) -> int:
    """Blocks of a multiprocessor of sm_90 at once (CUDA guide, technical specifications per compute capability)."""
    # Each of its 4 parts has 16 Ki registers, which warps get in units of 256.
    of_a_warp = -(-registers * 32 // 256) * 256
    warps = 4 * min(16 * 1024 // of_a_warp, 16)
    # 228 KiB of shared memory, of which the system keeps 1 KiB a block.
    return min(warps // (threads // 32), 228 * 1024 // (shared + 1024), 32)


def find_disassembler(toolkit: Path) -> Path | None:
    """nvdisasm of the toolkit, or of its package."""
    beside = toolkit / "bin" / "nvdisasm"
    if beside.exists():
        return beside
    if found := shutil.which("nvdisasm"):
        return Path(found)
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == "nvdisasm"), None)


def disassembled(tool: Path, cubins: Iterable[Path]) -> str:
    """The code of some files that nvcc has kept."""
    told = [subprocess.run([tool, "-c", file], capture_output=True, text=True, check=True).stdout for file in cubins]
    return "\n".join(told)
