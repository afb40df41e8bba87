"""Where the CUDA toolkit is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path


def find_toolkit() -> Path | None:
    """The folder of the CUDA toolkit, asked of nvcc itself: on PATH there may be a wrapper."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    told = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
    return toolkit_of(told) or Path(nvcc).resolve().parent.parent


def toolkit_of(dryrun: str) -> Path | None:
    """The toolkit that the output of `nvcc --dryrun` names."""
    top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
    return Path(os.path.normpath(top.group(1).strip())) if top else None
