"""A worker that is killed under `torchrun --max-restarts` costs the steps since the last checkpoint, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import Note

TRAIN = Path(__file__).parent / "train_torch.py"


def run(folder: Path, victim: int) -> list[dict[str, Any]]:
    """What two workers said at their ends; the victim, if there is one, is killed before its 13th step."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "--monitor-interval", "0.2", str(TRAIN), str(folder), str(victim), "12"]
    # torch 2.13 keeps the store over a restart, and the new workers find the addresses of the old ones there.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    subprocess.run(command, env=environment, check=True, timeout=120, capture_output=True)
    return [json.loads((folder / f"end.{rank}").read_text()) for rank in range(2)]


@pytest.mark.quick
def test_a_restarted_run_goes_on_bitwise_from_the_last_checkpoint(tmp_path: Path, fault: Note) -> None:
    fault("SIGKILL in a local step", "torchrun --max-restarts")
    undisturbed, restarted = run(tmp_path / "undisturbed", -1), run(tmp_path / "restarted", 1)
    assert [one["start"] for one in restarted] == [10, 10]
    for one, other in zip(undisturbed, restarted, strict=True):
        assert one["weight"] == other["weight"]
        assert one["rounds"] == other["rounds"] == 5
