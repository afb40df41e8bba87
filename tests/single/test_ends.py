"""What an optimizer keeps must not keep a process from ending well."""

from __future__ import annotations

import subprocess
import sys

ENDS = """
import gc, weakref
import grawa_hvd
import torch
import torch.distributed as dist

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
group = weakref.ref(dist.group.WORLD)
optimizer = grawa_hvd.DistributedGrawaOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
dist.destroy_process_group()
gc.collect()
assert group() is None, "the group is alive, and so are its threads"
try:
    optimizer._worker.member.wire.transport.group
except RuntimeError as error:
    print(error)
"""


def test_torchs_group_ends_when_it_is_destroyed_while_the_optimizer_lives() -> None:
    """A thread of Gloo that lets go of a tensor while Python ends would end the process by SIGABRT."""
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "was destroyed by dist.destroy_process_group()" in ended.stdout
