"""The examples, as their users start them: two ranks under horovodrun or torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LAUNCHERS = {
    "horovodrun": ("-np", "2", "-H", "localhost:2", sys.executable),
    "torchrun": ("--standalone", "--nproc-per-node", "2"),
}


def launch(
    launcher: str, script: str | Path, *arguments: str | Path, paths: Sequence[Path] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script on two ranks from the top of the repository, with these folders first on Python's path."""
    command = [str(BIN / launcher), *LAUNCHERS[launcher], str(script), *map(str, arguments)]
    search = os.pathsep.join(filter(None, [*map(str, paths), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": search,
    }  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
