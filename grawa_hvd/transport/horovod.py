"""The workers of a Horovod process set; with `horovod_work.py` and `elastic.py` all that imports Horovod."""

from __future__ import annotations

import itertools
import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, ClassVar

import torch
from torch import Tensor

from grawa_hvd.transport.base import Links, Transport
from grawa_hvd.transport.horovod_work import Allreduce, Alltoall, Gathered, hvd, let_join_wait_for, under_way
from grawa_hvd.transport.wire import Compression

NO_PROCESS_SETS = (
    'local_period needs a Horovod process set for each host: call hvd.init(process_sets="dynamic"), or start '
    "horovodrun with HOROVOD_DYNAMIC_PROCESS_SETS=1 in its environment"
)

STALE_PROCESS_SET = (
    "process_set was made before hvd.shutdown(), and its ranks may be others now: make the process set and the "
    "optimizer anew, or leave process_set out"
)


class _Life:
    """Horovod from `hvd.init()` to `hvd.shutdown()`, after which an elastic job begins another.

    Attributes:
        generation: the number of ends before.
        names: how many optimizers have names by now. By ranks: Horovod gives the number of a removed process set to the
            next one, whose ranks may have counted differently. One has a name when it begins to sum: all ranks do that
            together, while one alone may make an optimizer.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.names: defaultdict[tuple[int, ...], Iterator[int]] = defaultdict(itertools.count)

    def watch(self) -> None:
        """Notice each end: whoever calls `hvd.shutdown`, under whatever name, comes to the native function."""
        native = hvd.mpi_ops._basics.MPI_LIB_CTYPES
        shutdown = native.horovod_shutdown
        if getattr(shutdown, "is_watched", False):
            return

        def shutdown_and_count() -> None:
            shutdown()
            self.generation += 1
            self.names.clear()
            under_way.clear()

        shutdown_and_count.is_watched = True  # type: ignore[attr-defined]
        native.horovod_shutdown = shutdown_and_count


_life = _Life()


class HorovodTransport(Transport):
    """The processes of a process set.

    Args:
        process_set: an hvd.ProcessSet; None for all processes.

    Raises:
        ValueError: if it is something else, or if `hvd.init()` has not been called.
    """

    # Horovod refuses bfloat16.
    dtypes = frozenset({torch.float16, torch.float32, torch.float64})
    average, average_name = hvd.Average, "hvd.Average"
    leave_early = "call hvd.join()"
    broadcast = (
        "hvd.broadcast_parameters(model.state_dict(), root_rank=0), or call it before hvd.broadcast_optimizer_state(), "
        "which steps the optimizer of ranks without a state"
    )
    equivalents: ClassVar[Mapping[Any, Any]] = {
        hvd.Compression.none: Compression.none,
        hvd.Compression.fp16: Compression.fp16,
    }

    def __init__(self, process_set: Any = None) -> None:
        hvd.size()  # raises Horovod's own error where hvd.init() was forgotten
        process_set = hvd.global_process_set if process_set is None else process_set
        if not isinstance(process_set, hvd.ProcessSet):
            raise ValueError(f"process_set must be an hvd.ProcessSet, but is {process_set!r}")
        self._process_set = process_set
        _life.watch()
        self._made_in, self._named_in = _life.generation, -1

    @property
    def _prefix(self) -> str:
        """Of collective names, which two optimizers in one process must not share (horovod#2559).

        After a new start the names are given anew, as optimizers are used, for new processes count from 0.
        """
        if self._named_in != _life.generation:
            is_global = self._process_set.process_set_id == hvd.global_process_set.process_set_id
            if self._made_in != _life.generation and not is_global:
                raise ValueError(STALE_PROCESS_SET)
            self._named_in = _life.generation
            self._number = next(_life.names[tuple(self._process_set.ranks or ())])
        return f"grawa.{self._number}"

    def again(self) -> HorovodTransport:
        """The same process set, with other names for its sums."""
        return HorovodTransport(self._process_set)

    @property
    def generation(self) -> int:
        """How often `hvd.shutdown()` was called."""
        return _life.generation

    @property
    def rank(self) -> int:
        """This worker's number among the workers."""
        return int(self._process_set.rank())

    @property
    def size(self) -> int:
        """The number of workers, M."""
        return int(self._process_set.size())

    @property
    def is_member(self) -> bool:
        """Whether the process set includes this process."""
        return bool(self._process_set.included())

    def sum_(self, buffer: Tensor, name: str) -> Allreduce:
        """Start an allreduce in place; a rank that has joined (`hvd.join`) counts as zeros.

        While a rank has joined, Horovod can do nothing else: an allgather or broadcast fails then on every rank.
        """
        work = Allreduce(buffer, f"{self._prefix}.{name}", self._process_set)
        let_join_wait_for(work)
        return work

    def gather_neighbors(self, buffer: Tensor, links: Links, name: str) -> Alltoall | Gathered:
        """Start an alltoall that sends to neighbors alone; a rank that has joined has none.

        While a rank has joined, Horovod can only allreduce: then every worker that sends has a sum to itself, one after
        the other, which takes the bytes of all workers. Horovod has no point-to-point messages.
        """
        if links.complete:
            work = Alltoall(buffer, links, self.rank, f"{self._prefix}.{name}.neighbors", self._process_set)
            let_join_wait_for(work)
            return work
        senders = sorted({source for sources in links.sources for source in sources})
        received = buffer.new_empty(len(links.sources[self.rank]), buffer.numel())
        # Horovod cannot add bfloat16 numbers; with zeros from the others, float32 ones stay what they are.
        dtype = buffer.dtype if buffer.dtype in self.dtypes else torch.float32
        for sender in senders:
            wire = buffer.to(dtype, copy=True) if sender == self.rank else torch.zeros_like(buffer, dtype=dtype)
            self.sum_(wire, f"{name}.from.{sender}").wait()
            if sender in links.sources[self.rank]:
                received[links.sources[self.rank].index(sender)] = wire
        size = torch.finfo(dtype).bits // 8
        return Gathered(received, len(senders) * buffer.numel() * size)

    def check_subgroups(self) -> None:
        """Whether process sets can be made, as far as a rank can see by itself.

        Raises:
            ValueError: if it is plain that they cannot.
        """
        dynamic = os.environ.get("HOROVOD_DYNAMIC_PROCESS_SETS", "0") not in ("", "0")
        made_before = len(hvd.mpi_ops._basics._get_process_set_ids_and_ranks()) > 1
        if hvd.local_size() < hvd.size() and not dynamic and not made_before:
            raise ValueError(NO_PROCESS_SETS)

    def subgroup(self, workers: Sequence[int]) -> HorovodTransport:
        """A process set of some workers, made if Horovod has none; a collective of all ranks then.

        Raises:
            ValueError: if Horovod was started without dynamic process sets, and has not this one.
        """
        ranks = [self.ranks[worker] for worker in workers]
        for number, members in hvd.mpi_ops._basics._get_process_set_ids_and_ranks().items():
            if members == ranks:
                known = hvd.ProcessSet(ranks)
                known.process_set_id = number
                return HorovodTransport(known)
        try:
            return HorovodTransport(hvd.add_process_set(ranks))
        except ValueError as error:
            raise ValueError(f"{NO_PROCESS_SETS} ({error})") from error

    def host(self) -> str:
        """The name by which horovodrun knows this host."""
        return os.environ.get("HOROVOD_HOSTNAME", socket.gethostname())

    @property
    def ranks(self) -> Sequence[int]:
        """The workers by their global ranks."""
        is_global = self._process_set.process_set_id == hvd.global_process_set.process_set_id
        return range(self.size) if is_global else list(self._process_set.ranks)


def built_with() -> dict[str, bool]:
    """Which of Gloo, NCCL and MPI this Horovod was built with."""
    return {"Gloo": bool(hvd.gloo_built()), "NCCL": bool(hvd.nccl_built()), "MPI": bool(hvd.mpi_built())}


def version() -> str:
    """Horovod's version."""
    return metadata.version("horovod")
