"""Prints as JSON what figures from a GPU depend on: versions, the GPU, the processor. Nothing that names the host."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def first_line(*command: str) -> str | None:
    """The first line that matters of what a tool prints; None where there is no such tool."""
    if shutil.which(command[0]) is None:
        return None
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.splitlines()
    return next((line.strip() for line in told if re.search(r"\d\.\d", line)), None)


def gpu() -> dict[str, Any] | None:
    """The first GPU that torch sees."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "cache_bytes": found.L2_cache_size,
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "count": torch.cuda.device_count(),
    }


def versions() -> dict[str, str | None]:
    """Of what takes part."""
    found: dict[str, str | None] = {"python": platform.python_version(), "torch": torch.__version__}
    found["cuda"] = torch.version.cuda
    for name in ("horovod", "numpy", "pytest"):
        found[name] = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["nvcc"] = first_line("nvcc", "--version")
    found["g++"] = first_line("g++", "--version")
    found["glibc"] = " ".join(platform.libc_ver())
    return found


def processor() -> str | None:
    """The name that Linux gives it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1] if found else None
    return None


if __name__ == "__main__":
    facts = {"gpu": gpu(), "versions": versions(), "cpu": processor(), "cpus": len(os.sched_getaffinity(0))}
    print(json.dumps(facts, indent=1))
