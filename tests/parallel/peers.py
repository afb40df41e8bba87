"""The other ranks of a test, over the transport that run.py names: Horovod, or torch.distributed with Gloo."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TRANSPORT = os.environ.get("GRAWA_TEST_TRANSPORT", "horovod")
# Horovod's own module, for tests that are marked `horovod`; None over torch.
hvd: Any = None
if TRANSPORT == "horovod":
    import horovod.torch as hvd
else:
    sys.modules["horovod"] = None  # whoever imports it in a torch run learns of it

# Why a test is skipped in a torch run.
OF_HOROVOD = "is of what Horovod does; this run is over torch.distributed"
TORCH_TIMEOUT = timedelta(seconds=120)
# Of the exchanges of the tests. They have connections of their own: the sums of a round are told apart by their order
# alone, and one that a failed rank has left out must not meet an exchange of the next test.
_own: Any = None


def rank() -> int:
    """This rank, as the launcher says: known before `start` too."""
    return int(os.environ.get("HOROVOD_RANK" if TRANSPORT == "horovod" else "RANK", "0"))


def size() -> int:
    """The number of ranks, as the launcher says."""
    return int(os.environ.get("HOROVOD_SIZE" if TRANSPORT == "horovod" else "WORLD_SIZE", "1"))


def start() -> None:
    """Join the other ranks."""
    global _own  # noqa: PLW0603  (one world a process, as of the transports themselves)
    if TRANSPORT == "horovod":
        hvd.init()
    else:
        dist.init_process_group("gloo", timeout=TORCH_TIMEOUT)
        _own = dist.new_group(timeout=TORCH_TIMEOUT)


def stop() -> None:
    """Leave them."""
    if TRANSPORT == "horovod":
        hvd.shutdown()
    else:
        dist.destroy_process_group()


def sum_(tensor: Tensor, name: str = "test.sum") -> Tensor:
    """The sum over ranks, in place.

    Args:
        tensor: of the same shape on every rank.
        name: for Horovod, which tells ranks that sum different things.
    """
    if TRANSPORT == "horovod":
        hvd.allreduce_(tensor, op=hvd.Sum, name=name)
    else:
        dist.all_reduce(tensor, group=_own)
    return tensor


def gather(tensor: Tensor) -> Tensor:
    """Every rank's tensor, [M, ...], of the same shape on every rank."""
    if TRANSPORT == "horovod":
        # Unnamed, it would be named by the number of operations so far, which differs across ranks after a join.
        gathered: Tensor = hvd.allgather(tensor[None], name="test.gather")
        return gathered
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, tensor.contiguous(), group=_own)
    return torch.stack(parts)


def gather_objects(value: Any) -> list[Any]:
    """What every rank has, in order of rank."""
    if TRANSPORT == "horovod":
        found: list[Any] = hvd.allgather_object(value, name="test.objects")
        return found
    found = [None] * size()
    dist.all_gather_object(found, value, group=_own)
    return found


def broadcast(model: nn.Module) -> None:
    """Let the parameters and buffers be those of rank 0."""
    if TRANSPORT == "horovod":
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        return
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, 0, group=_own)


@contextmanager
def members(*groups: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Let some ranks average with each other, apart from the others; a collective.

    Args:
        groups: ranks; no rank is in two of them. The group that an option names is the first one for a rank in none.

    Returns:
        The option by which an optimizer is told its group.
    """
    if TRANSPORT == "horovod":
        made = [hvd.add_process_set(ranks) for ranks in groups]
        yield {"process_set": _group_of_this_rank(groups, made)}
        for each in made:
            hvd.remove_process_set(each)
    else:
        made = [dist.new_group(ranks, timeout=TORCH_TIMEOUT) for ranks in groups]
        yield {"process_group": _group_of_this_rank(groups, made)}
        # Not one by one: a rank that is in none of a group cannot destroy it, and one that is must not do so before
        # the others have received what they sum.


def _group_of_this_rank(groups: Sequence[Sequence[int]], made: list[Any]) -> Any:
    own = [group for ranks, group in zip(groups, made, strict=True) if rank() in ranks]
    return own[0] if own else made[0]
