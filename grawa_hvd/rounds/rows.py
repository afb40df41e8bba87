"""The row: what one worker tells the others at a handshake, and the rows of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column, Observed
from grawa_hvd.transfer import send


class Reason(IntEnum):
    """What a rank has come for; 0 stands for a rank that is absent.

    A rank that has left early comes for nothing, over a backend where it has to follow the others. It counts as absent.
    ROUND is due, ROUND_NOW is asked for by the user. LAST_CONSENSUS is the mean by the weights of the last round.
    """

    NOTHING = -1
    ARRIVAL = 1
    ROUND = 2
    CONSENSUS = 3
    ROUND_NOW = 4
    LAST_CONSENSUS = 5

    @property
    def is_round(self) -> bool:
        """Whether the rank has come to average."""
        return self in (Reason.ROUND, Reason.ROUND_NOW)


class Progress(NamedTuple):
    """A worker's place in the run.

    Attributes:
        steps: local steps in all.
        since_round: local steps since the last round.
        rounds: rounds started.
        has_center: whether it has a centre (1) or not (0).
    """

    steps: int = 0
    since_round: int = 0
    rounds: int = 0
    has_center: int = 0


class Header(NamedTuple):
    """The part of a row that the host knows. Every number is an integer that a float64 holds exactly.

    Attributes:
        reason: what the rank has come for.
        terms: digest of what the ranks must agree on.
        failed: whether a callable of the user's raised.
        start: digest of the parameters; of those who arrive.
        handshakes: the number of the last handshake that the rank took part in.
        length: τ of the cycle that it is in.
        state: digest of the names and shapes of the optimizer's state, where that is averaged.
        steps, since_round, rounds, has_center: its `Progress`.
    """

    reason: int = 0
    terms: int = 0
    failed: int = 0
    start: int = 0
    handshakes: int = 0
    length: int = 0
    state: int = 0
    steps: int = 0
    since_round: int = 0
    rounds: int = 0
    has_center: int = 0

    @property
    def progress(self) -> Progress:
        """The rank's place in the run."""
        return Progress(self.steps, self.since_round, self.rounds, self.has_center)


class Measured(NamedTuple):
    """The part of a row that is computed where the parameters are: numbers, or tensors of one element.

    Attributes:
        distance: ‖x − c‖ when the worker was last pulled; NaN if it was not.
        radius: ‖x − c‖ now, where differences travel in 16 bits; else 0.
        finite: 1 if all parameters are finite, else 0.
        loss, accuracy: means of what was reported since the last round; NaN where nothing was.
        samples: the sum of the samples reported; NaN likewise.
    """

    distance: float | Tensor = 0.0
    radius: float | Tensor = 0.0
    finite: float | Tensor = 0.0
    loss: float | Tensor = 0.0
    accuracy: float | Tensor = 0.0
    samples: float | Tensor = 0.0


# The numbers of a row before its columns.
BEFORE_COLUMNS = len(Header._fields) + len(Measured._fields)


@dataclass
class Row:
    """What one worker tells the others.

    Attributes:
        columns: the layers' columns that the policy needs, in order of `Column`, float64 [columns · L].
    """

    header: Header
    measured: Measured
    columns: Tensor

    def pack(self) -> Tensor:
        """The row as float64 numbers, [K], where the columns are."""
        numbers = [*self.header, *(0.0 if isinstance(value, Tensor) else value for value in self.measured)]
        packed = torch.cat(
            [send(torch.tensor(numbers, dtype=torch.float64, device="cpu"), self.columns.device), self.columns]
        )
        for place, value in enumerate(self.measured, len(Header._fields)):
            if isinstance(value, Tensor):
                packed[place : place + 1].copy_(value, non_blocking=packed.is_cuda)
        return packed


class Rows:
    """The rows of all workers, in the host's memory.

    Args:
        matrix: [M, K], in the host's memory; zeros in the row of a rank that is absent.
        headers: of the ranks that are present.

    Attributes:
        size: M; bytes: what this worker handed to the transport.
        header: rank → header, of the ranks that are present, in order.
        finite: ranks whose parameters are finite.
        usable: which workers have finite parameters and columns, bool, [M].
        distances: ‖x − c‖ of each worker when it was last pulled; NaN where it was not.
    """

    def __init__(self, matrix: Tensor, headers: dict[int, Header]) -> None:
        self.size, self.bytes = len(matrix), matrix.numel() * matrix.element_size()
        self.header = headers
        measured = zip(*matrix[:, len(Header._fields) : BEFORE_COLUMNS].tolist(), strict=True)
        self._measured = dict(zip(Measured._fields, map(list, measured), strict=True))
        self._columns = matrix[:, BEFORE_COLUMNS:]
        self.finite = [rank for rank, finite in enumerate(self._measured["finite"]) if finite]
        self.usable = torch.tensor([finite == 1 for finite in self._measured["finite"]], device="cpu")
        self.usable &= self._columns.isfinite().all(dim=1)
        self.distances = self._told("distance")

    def _told(self, name: str) -> list[float]:
        """A number of each worker; NaN of a rank that is absent."""
        return [value if rank in self.header else math.nan for rank, value in enumerate(self._measured[name])]

    @property
    def present(self) -> list[int]:
        """Ranks that are there."""
        return list(self.header)

    @property
    def arriving(self) -> list[int]:
        """Ranks that have come to take their place in the run."""
        return self.came_for(Reason.ARRIVAL)

    @property
    def _under_way(self) -> list[int]:
        return [rank for rank, header in self.header.items() if header.reason != Reason.ARRIVAL]

    def came_for(self, *reasons: Reason) -> list[int]:
        """Ranks that have come for one of some things."""
        return [rank for rank, header in self.header.items() if header.reason in reasons]

    @property
    def has_moved(self) -> bool:
        """Whether any of those under way has made a step since the last cycle ended."""
        return any(self.header[rank].since_round for rank in self._under_way)

    @property
    def leader(self) -> int:
        """The rank whose place those who arrive take: the furthest of those already under way, if there are any."""
        return max(self._under_way or self.present, key=lambda rank: (self.header[rank].steps, -rank))

    @property
    def witness(self) -> int:
        """The rank that has taken part in the last round of those under way."""
        return max(self._under_way or self.present, key=lambda rank: (self.header[rank].rounds, -rank))

    @property
    def rounds(self) -> int:
        """Rounds started, with the one that begins now."""
        return 1 + max(header.rounds for header in self.header.values())

    @property
    def behind(self) -> list[int]:
        """Ranks that missed rounds of the others, as those that had joined: their centre is an old one."""
        rounds = self.header[self.witness].rounds
        return [rank for rank in self._under_way if self.header[rank].rounds < rounds]

    @property
    def radius(self) -> float:
        """The largest distance from the centre of a worker whose parameters are finite."""
        return max((self._measured["radius"][rank] for rank in self.finite), default=0.0)

    @property
    def losses(self) -> Tensor:
        """Mean loss that each worker reported, [M]; NaN where none was, as of a rank that is absent."""
        return torch.tensor(self._told("loss"), dtype=torch.float64, device="cpu")

    def observed(self, layers: int, needs: frozenset[Column], fragment: int = 0) -> Observed:
        """A policy's input; NaN in the rows of workers that are left out.

        Args:
            layers: L.
            needs: the columns that the rows have.
            fragment: see `Observed`.
        """
        sent = [column for column in Column if column in needs]
        parts = dict(zip(sent, torch.split(self._columns, max(1, layers), dim=1), strict=False))
        columns = [
            parts[column] if column in parts else self._columns.new_zeros(self.size, layers) for column in Column
        ]
        reported = [
            torch.tensor(self._told(name), dtype=torch.float64, device="cpu")
            for name in ("loss", "accuracy", "samples")
        ]
        observed = Observed(self.usable, *columns, *reported, fragment=fragment)
        return observed if self.usable.all() else observed.without(~self.usable)


def headers(matrix: Tensor) -> dict[int, Header]:
    """Rank → header, of the ranks that are present, in order.

    Args:
        matrix: [M, at least the length of a header], in the host's memory.
    """
    found = [Header(*map(int, row)) for row in matrix[:, : len(Header._fields)].tolist()]
    return {rank: header for rank, header in enumerate(found) if header.reason}


def present(found: dict[int, Header]) -> dict[int, Header]:
    """The headers without those of ranks that have left early."""
    return {rank: header for rank, header in found.items() if header.reason != Reason.NOTHING}
