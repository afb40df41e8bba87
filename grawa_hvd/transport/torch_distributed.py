"""The workers of a torch.distributed process group: NCCL on GPUs, Gloo on CPUs."""

from __future__ import annotations

import gc
import os
import socket
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Join, Joinable, JoinHook, _JoinConfig
from torch.nn.parallel import DistributedDataParallel

from grawa_hvd.transport.base import Links, Transport, named
from grawa_hvd.transport.gone import explained


class TorchTransport(Transport):
    """The processes of a group.

    Sums are told apart by their order alone, which is the same on every rank.

    Args:
        process_group: a group of torch.distributed; None for all processes.
        device_mesh: a mesh of one dimension instead.

    Raises:
        ValueError: if either is something else, or the mesh has more than one dimension.
    """

    dtypes = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
    average, average_name = dist.ReduceOp.AVG, "torch.distributed.ReduceOp.AVG"
    leave_early = "enter torch.distributed.algorithms.Join([optimizer])"
    broadcast = "torch.distributed.broadcast of each parameter"

    def __init__(self, process_group: Any = None, device_mesh: Any = None) -> None:
        if device_mesh is not None:
            process_group = _group_of(device_mesh)
        if process_group is None:
            process_group = dist.group.WORLD
        is_member = process_group is not dist.GroupMember.NON_GROUP_MEMBER
        if is_member and not isinstance(process_group, dist.ProcessGroup):
            raise ValueError(f"process_group must be a torch.distributed.ProcessGroup, but is {process_group!r}")
        # Not held: a group must not outlive `destroy_process_group()`; see the folder's __init__.
        self._group = weakref.ref(process_group) if is_member else None
        self._joinable: Any = None
        self._ranks = dist.get_process_group_ranks(process_group) if is_member else []
        # NCCL alone takes nothing that lies in host memory.
        backends = dist.get_backend_config(process_group) if is_member else ""
        self._takes_host_memory = "cpu:" in backends
        # Gloo adds what lies on a GPU, but sends to a neighbor from host memory alone.
        self._sends_from_gpu = "cuda:gloo" not in backends

    @property
    def group(self) -> Any:
        """The group.

        Raises:
            RuntimeError: if it has been destroyed.
        """
        if self._group is None:
            return dist.GroupMember.NON_GROUP_MEMBER
        group = self._group()
        if group is None:
            raise RuntimeError("the process group of this optimizer was destroyed by dist.destroy_process_group()")
        return group

    @property
    def rank(self) -> int:
        """This worker's number in the group; −1 outside it."""
        return dist.get_rank(self.group) if self.is_member else -1

    @property
    def ranks(self) -> Sequence[int]:
        """The workers by their global ranks; none outside the group."""
        return self._ranks

    @property
    def is_member(self) -> bool:
        """Whether the group has this process."""
        return bool(self._ranks)

    def attach(self, optimizer: Any) -> None:
        """Make the optimizer a `torch.distributed.algorithms.Joinable`, for `with Join([optimizer]):`."""
        Joinable.register(type(optimizer))
        optimizer._join_config = _JoinConfig(enable=False, throw_on_early_termination=False, is_first_joinable=False)
        self._joinable = optimizer

    def join_hook(self, follow: Callable[[], None]) -> JoinHook:
        """What `Join` calls on a rank that has left early."""
        return _Follow(follow)

    def begin(self) -> None:
        """Tell ranks that have joined to follow."""
        if self._joinable is not None:
            Join.notify_join_context(self._joinable)

    def check_model(self, parameters: Sequence[Tensor]) -> None:
        """Whether torch's DistributedDataParallel reduces the gradients of these parameters over these ranks.

        Raises:
            ValueError: if so; over a group within the host, DDP is welcome.
        """
        ours = set(map(id, parameters))
        for found in gc.get_objects():
            if not issubclass(type(found), DistributedDataParallel) or ours.isdisjoint(map(id, found.parameters())):
                continue
            shared = set(self._ranks) & set(dist.get_process_group_ranks(found.process_group))
            if len(shared) > 1:
                raise ValueError(
                    f"DistributedDataParallel reduces the gradients of this model over {named(sorted(shared))}, "
                    "so their models never part and there is nothing to average. Leave it out, or give it a "
                    "process_group within the host, and this optimizer one across hosts"
                )

    def sum_(self, buffer: Tensor, name: str) -> _AllReduce:
        """Start an all-reduce in place."""
        if buffer.is_cpu and not self._takes_host_memory:
            return _AllReduce(buffer, buffer.cuda(), self.group)
        return _AllReduce(buffer, buffer, self.group)

    def gather_neighbors(self, buffer: Tensor, links: Links, name: str) -> _Gathering:
        """Start to send to neighbors and to receive from them, point to point."""
        wire = buffer
        if buffer.is_cpu and not self._takes_host_memory:
            wire = buffer.cuda()
        elif buffer.is_cuda and not self._sends_from_gpu:
            wire = buffer.cpu()
        sources, targets = (
            [self._ranks[m] for m in peers] for peers in (links.sources[self.rank], links.targets(self.rank))
        )
        return _Gathering(buffer, wire, sources, targets, self.group)

    def check_subgroups(self) -> None:
        """Whether groups can be made: torch makes one with all processes.

        With `use_local_synchronization` the members suffice, but then torch 2.13 names a group by how many a process is
        in, and processes that are in different numbers of groups wait for each other for ever.

        Raises:
            ValueError: if this group has not got all processes.
        """
        if self.is_member and len(self._ranks) < dist.get_world_size():
            raise ValueError(
                f"local_period needs all {dist.get_world_size()} processes of torch.distributed in one group of "
                f"workers, but process_group has {len(self._ranks)} of them"
            )

    def subgroup(self, workers: Sequence[int]) -> TorchTransport:
        """A group of some workers, made by all of them."""
        ranks = [self._ranks[worker] for worker in workers]
        if ranks == list(self._ranks):
            return self
        return TorchTransport(dist.new_group(ranks, backend=dist.get_backend(self.group)))

    def host(self) -> str:
        """This host's name, and the number of torchrun's agent on it."""
        return f"{socket.gethostname()} {os.environ.get('GROUP_RANK', '')}"


class _Follow(JoinHook):
    """What a rank does that has joined, each time that the others exchange rows."""

    def __init__(self, follow: Callable[[], None]) -> None:
        self.main_hook = follow  # type: ignore[method-assign]


def _explained() -> AbstractContextManager[None]:
    return explained("torch.distributed", "the timeout given to init_process_group()")


class _AllReduce:
    def __init__(self, buffer: Tensor, wire: Tensor, group: Any) -> None:
        self._buffer, self._wire = buffer, wire
        with _explained():
            self._work = dist.all_reduce(wire, group=group, async_op=True)

    def done(self) -> bool:
        return bool(self._work.is_completed())

    def wait(self) -> None:
        # With NCCL the current stream waits, and the host goes on.
        with _explained():
            self._work.wait()
        if self._wire is not self._buffer:
            self._buffer.copy_(self._wire)


class _Gathering:
    def __init__(self, buffer: Tensor, wire: Tensor, sources: list[int], targets: list[int], group: Any) -> None:
        self._device, self._wire = buffer.device, wire
        self.bytes = len(targets) * wire.numel() * wire.element_size()
        self._received = wire.new_empty(len(sources), wire.numel())
        operations = [dist.P2POp(dist.isend, wire, target, group) for target in targets]
        operations += [
            dist.P2POp(dist.irecv, row, source, group) for row, source in zip(self._received, sources, strict=True)
        ]
        with _explained():
            self._works = dist.batch_isend_irecv(operations) if operations else []

    def done(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def wait(self) -> Tensor:
        # With NCCL the current stream waits, and the host goes on.
        with _explained():
            for work in self._works:
                work.wait()
        return self._received.to(self._device)


def _group_of(device_mesh: Any) -> Any:
    if not hasattr(device_mesh, "get_group"):
        raise ValueError(f"device_mesh must be a torch DeviceMesh, but is {device_mesh!r}")
    if device_mesh.ndim != 1:
        raise ValueError(
            f"device_mesh must have one dimension, but has {device_mesh.ndim}: name that over which workers average, "
            'as mesh["replicate"]'
        )
    return device_mesh.get_group()
