"""The collectives of a round, over Horovod; the only file that imports it."""

from __future__ import annotations

import functools
import itertools
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

import torch
from torch import Tensor

from grawa_hvd.compression import Compression, Half

try:
    import horovod.torch as hvd
    from horovod.common.exceptions import HorovodInternalError
except ImportError as error:
    raise ImportError(
        f"grawa_hvd averages over Horovod, which cannot be imported ({error}): install it for this PyTorch with "
        "scripts/install_horovod.py of grawa_hvd's source"
    ) from error

Average = hvd.Average
ProcessSet = hvd.ProcessSet
global_process_set = hvd.global_process_set

# A bfloat16 buffer, which Horovod refuses, travels as float32 in this many pieces: one piece is 5% of the buffer.
BFLOAT16_PIECES = 40
SMALLEST_PIECE = 2**16
WORDS = 4  # of 16 bits in a float64

NO_PROCESS_SETS = (
    'local_period needs a Horovod process set for each host: call hvd.init(process_sets="dynamic"), or start '
    "horovodrun with HOROVOD_DYNAMIC_PROCESS_SETS=1 in its environment"
)

# By ranks: Horovod gives the number of a removed process set to the next one, whose ranks may have counted differently.
_instances: defaultdict[tuple[int, ...], Iterator[int]] = defaultdict(itertools.count)


class MismatchedRowsError(Exception):
    """Ranks handed rows of different length to `Communicator.gather`; raised on all of them."""


class Sum(Protocol):
    """A sum over ranks under way."""

    bytes: int

    def done(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> None:
        """Block until the buffer holds the sum."""


class Communicator:
    """The workers of one optimizer: who they are, and the sums they make.

    Args:
        process_set: the Horovod processes that average with each other; the others train alone.
        compression: `Compression.fp16` and its like, or any Horovod compressor: what a buffer is turned into while it
            travels.

    Attributes:
        halves: whether differences from the centre travel, in 16 bits an element.
        exact: whether buffers travel as they are.

    Raises:
        ValueError: if either is something else, or the compression is `Compression.bf16`, which Horovod cannot add.
    """

    def __init__(self, process_set: Any = global_process_set, compression: Any = Compression.none) -> None:
        hvd.size()  # raises Horovod's own error where hvd.init() was forgotten
        if not isinstance(process_set, ProcessSet):
            raise ValueError(f"process_set must be an hvd.ProcessSet, but is {process_set!r}")
        if not (hasattr(compression, "compress") and hasattr(compression, "decompress")):
            raise ValueError(
                f"compression must have compress() and decompress(), as hvd.Compression.fp16, but is {compression!r}"
            )
        if compression is Compression.bf16:
            raise ValueError(
                "compression must be Compression.none, Compression.fp16 or a compressor of Horovod's kind, but is "
                "Compression.bf16: Horovod cannot add bfloat16 numbers. Compression.fp16 takes as many bytes, and its "
                "differences, scaled together, have the range of bfloat16"
            )
        self.halves = compression in (Half, hvd.Compression.fp16)
        self.exact = compression in (Compression.none, hvd.Compression.none)
        self._process_set = process_set
        self._compression = compression
        # Two optimizers in one process must not share collective names (horovod#2559).
        self._prefix = f"grawa.{next(_instances[tuple(process_set.ranks or ())])}"

    @property
    def active(self) -> bool:
        """Whether this process has other workers to average with."""
        return bool(self._process_set.included() and self.size > 1)

    @property
    def rank(self) -> int:
        """This worker's row among the workers."""
        return int(self._process_set.rank())

    @property
    def size(self) -> int:
        """The number of workers, M."""
        return int(self._process_set.size())

    def check_hosts(self) -> None:
        """Whether `within_host` can be had, as far as a rank can see by itself.

        Raises:
            ValueError: if it is plain that it cannot.
        """
        dynamic = os.environ.get("HOROVOD_DYNAMIC_PROCESS_SETS", "0") not in ("", "0")
        made_before = len(hvd.mpi_ops._basics._get_process_set_ids_and_ranks()) > 1
        if hvd.local_size() < hvd.size() and not dynamic and not made_before:
            raise ValueError(NO_PROCESS_SETS)

    def within_host(self) -> HostGroup:
        """This worker's host, as a communicator of its own; a collective of all workers.

        Raises:
            ValueError: if Horovod was started without dynamic process sets, and has not these.
        """
        name = os.environ.get("HOROVOD_HOSTNAME", socket.gethostname())
        names = self.gather_bytes(name.encode(), "hosts")
        ranks = range(self.size) if self._is_global else self._process_set.ranks
        hosts = [[worker for worker in range(self.size) if names[worker] == host] for host in dict.fromkeys(names)]
        # Every rank makes the sets of all hosts, in one order.
        sets = [_process_set_of([ranks[worker] for worker in workers]) for workers in hosts]
        own = next(number for number, workers in enumerate(hosts) if self.rank in workers)
        return HostGroup(Communicator(sets[own]), hosts[own])

    def leave_under_way(self, sums: list[Sum]) -> None:
        """Note sums that are still under way when control goes back to the user."""
        _join_after(sums)

    def describe(self) -> list[str]:
        """A line for each thing that ranks must agree on."""
        name = getattr(self._compression, "__name__", type(self._compression).__name__)
        return [f"compression={'fp16' if self.halves else name}"]

    def named(self, workers: list[int]) -> str:
        """Workers by their global ranks: "rank 2", or "ranks 0, 1"."""
        members = range(self.size) if self._is_global else self._process_set.ranks
        ranks = [str(members[worker]) for worker in workers]
        return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(ranks)}"

    @property
    def _is_global(self) -> bool:
        return bool(self._process_set.process_set_id == global_process_set.process_set_id)

    def gather(self, row: Tensor, what: str, wire: Tensor | None = None) -> Tensor:
        """Every worker's row, [M, K], in order of rank; zeros for a rank that has joined (`hvd.join`).

        Rows travel as the sum of matrices in which each worker fills its own row: while a rank has joined, Horovod can
        only allreduce. An allgather fails then, and one that stands in Horovod's response cache ends the whole job.

        Args:
            row: float64, [K], the same K on every rank.
            what: the collective's name; the same on every rank.
            wire: something else to sum over the workers, in the same message: a flat buffer of float32 or float64 that
                ends with `room` for the rows.

        Raises:
            MismatchedRowsError: on every rank, if their rows or wires differ in length.
        """
        room = self.room(row.numel(), row.dtype if wire is None else wire.dtype)
        wire = row.new_empty(room) if wire is None else wire
        words = wire[wire.numel() - room :].view(self.size, -1).zero_()
        words[self.rank] = _in_words(row, wire.dtype)
        try:
            hvd.allreduce_(wire, name=f"{self._prefix}.{what}", op=hvd.Sum, process_set=self._process_set)
        except HorovodInternalError as error:
            if "Mismatched" in str(error):
                raise MismatchedRowsError(str(error)) from error
            raise
        return _from_words(words)

    def room(self, columns: int, dtype: torch.dtype) -> int:
        """The elements of a type that rows of so many columns take in a message."""
        return self.size * columns * (1 if dtype == torch.float64 else WORDS)

    def gather_bytes(self, payload: bytes, what: str) -> list[bytes]:
        """Every worker's bytes, in order of rank; empty for a rank that has joined."""
        lengths = self.gather(torch.tensor([len(payload)], dtype=torch.float64), f"{what}.lengths")
        lengths = lengths.long().flatten()
        row = torch.zeros(int(lengths.max()), dtype=torch.float64)
        row[: len(payload)] = torch.frombuffer(bytearray(payload or b"\0"), dtype=torch.uint8)[: len(payload)]
        rows = self.gather(row, f"{what}.bytes").to(torch.uint8)
        return [bytes(rows[rank, :length].tolist()) for rank, length in enumerate(lengths.tolist())]

    def sum_async_(self, buffer: Tensor, what: str, exact: bool = False, overlapped: bool = False) -> Sum:
        """Start the sum of `buffer` over the workers, in place; a rank that has joined counts as zeros.

        Args:
            buffer: flat, of floating point.
            what: the collective's name; the same on every rank.
            exact: leave a compressor of the user's out.
            overlapped: other things happen, here and on other ranks, before the sum is waited for.
        """
        name = f"{self._prefix}.{what}"
        if buffer.dtype == torch.bfloat16:
            if overlapped:
                return _CompressedSum(buffer, name, self._process_set, _Widened)
            return _PiecewiseSum(buffer, name, self._process_set)
        plain = exact or self.halves
        return _CompressedSum(buffer, name, self._process_set, Compression.none if plain else self._compression)


class _CompressedSum:
    def __init__(self, buffer: Tensor, name: str, process_set: Any, compression: Any) -> None:
        self._buffer, self._compression = buffer, compression
        self._wire, self._context = compression.compress(buffer)
        self.bytes = self._wire.numel() * self._wire.element_size()
        self._handle = hvd.allreduce_async_(self._wire, name=name, op=hvd.Sum, process_set=process_set)
        self._received = False

    def done(self) -> bool:
        return self._received or bool(hvd.poll(self._handle))

    def wait(self) -> None:
        self._received = True
        result = self._compression.decompress(hvd.synchronize(self._handle), self._context)
        if result.data_ptr() != self._buffer.data_ptr():
            self._buffer.copy_(result)


class _Widened:
    """bfloat16, which Horovod refuses, as float32: for a sum that must be on its way at once, whatever it needs."""

    @staticmethod
    def compress(tensor: Tensor) -> tuple[Tensor, torch.dtype]:
        return tensor.float(), tensor.dtype

    @staticmethod
    def decompress(tensor: Tensor, context: torch.dtype) -> Tensor:
        return tensor.to(context)


class _PiecewiseSum:
    """A bfloat16 sum: piece by piece through one small float32 buffer, so that memory stays that of the model."""

    def __init__(self, buffer: Tensor, name: str, process_set: Any) -> None:
        self._buffer, self._name, self._process_set = buffer, name, process_set
        self.bytes = 4 * buffer.numel()

    def done(self) -> bool:
        return True  # nothing is under way before `wait`

    def wait(self) -> None:
        size = max(SMALLEST_PIECE, -(-self._buffer.numel() // BFLOAT16_PIECES))
        staging = torch.empty(min(size, self._buffer.numel()), dtype=torch.float32, device=self._buffer.device)
        for index, piece in enumerate(torch.split(self._buffer, size)):
            wire = staging[: piece.numel()].copy_(piece)
            name = f"{self._name}.{index}"
            piece.copy_(hvd.allreduce_(wire, name=name, op=hvd.Sum, process_set=self._process_set))


@dataclass(frozen=True)
class HostGroup:
    """The workers of one host: their communicator, and their ranks among all workers."""

    communicator: Communicator
    workers: list[int]


def _in_words(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 numbers so that float32 sums hold them exactly: as integers of 16 bits, to which others add zeros."""
    return numbers if dtype == torch.float64 else numbers.view(torch.int16).to(dtype)


def _from_words(words: Tensor) -> Tensor:
    return words.clone() if words.dtype == torch.float64 else words.to(torch.int16).view(torch.float64)


def _process_set_of(ranks: list[int]) -> Any:
    """The process set of these global ranks, made if Horovod has none; a collective of all ranks then."""
    for number, members in hvd.mpi_ops._basics._get_process_set_ids_and_ranks().items():
        if members == ranks:
            known = ProcessSet(ranks)
            known.process_set_id = number
            return known
    try:
        return hvd.add_process_set(ranks)
    except ValueError as error:
        raise ValueError(f"{NO_PROCESS_SETS} ({error})") from error


_under_way: list[Sum] = []


def _join_after(sums: list[Sum]) -> None:
    """Let `hvd.join` wait for these sums first: a rank that joins while it takes part in a sum hangs all ranks."""
    _under_way[:] = [*(sum_ for sum_ in _under_way if not sum_.done()), *sums]
    if getattr(hvd.join, "waits", False):
        return
    join = hvd.join

    @functools.wraps(join)
    def join_when_done(*arguments: Any, **options: Any) -> Any:
        while not all(sum_.done() for sum_ in _under_way):
            time.sleep(1e-3)
        return join(*arguments, **options)

    join_when_done.waits = True  # type: ignore[attr-defined]
    hvd.join = join_when_done


def built_transports() -> dict[str, bool]:
    """Which of Gloo, NCCL and MPI this Horovod was built with."""
    return {"Gloo": bool(hvd.gloo_built()), "NCCL": bool(hvd.nccl_built()), "MPI": bool(hvd.mpi_built())}


def horovod_version() -> str:
    """Horovod's version."""
    return metadata.version("horovod")
