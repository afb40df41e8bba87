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
    """

    NOTHING = -1
    ARRIVAL = 1
    ROUND = 2
    CONSENSUS = 3


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
    """The part of a row that is computed where the parameters are; each float64, [1] of one worker, [M] of all.

    Attributes:
        distance: ‖x − c‖ when the worker was last pulled; NaN if it was not.
        radius: ‖x − c‖ now, where differences travel in 16 bits; else 0.
        finite: 1 if all parameters are finite, else 0.
        loss, accuracy: means of what was reported since the last round; NaN where nothing was.
        samples: the sum of the samples reported; NaN likewise.
    """

    distance: Tensor
    radius: Tensor
    finite: Tensor
    loss: Tensor
    accuracy: Tensor
    samples: Tensor

    @classmethod
    def nothing(cls, device: torch.device) -> Measured:
        """Of a worker that tells no more than its header."""
        return cls(*torch.split(torch.zeros(len(cls._fields), dtype=torch.float64, device=device), 1))


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
        head = send(torch.tensor(self.header, dtype=torch.float64), self.columns.device)
        return torch.cat([head, *self.measured, self.columns])


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
        self._measured = Measured(*matrix[:, len(Header._fields) : BEFORE_COLUMNS].unbind(dim=1))
        self._columns = matrix[:, BEFORE_COLUMNS:]
        self._absent = torch.tensor([rank not in headers for rank in range(self.size)])
        self.finite = [rank for rank, finite in enumerate(self._measured.finite.tolist()) if finite]
        self.usable = (self._measured.finite == 1) & self._columns.isfinite().all(dim=1)
        self.distances: list[float] = self._measured.distance.masked_fill(self._absent, math.nan).tolist()

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

    def came_for(self, reason: Reason) -> list[int]:
        """Ranks that have come for something."""
        return [rank for rank, header in self.header.items() if header.reason == reason]

    @property
    def leader(self) -> int:
        """The rank whose place those who arrive take: the furthest of those already under way, if there are any."""
        return max(self._under_way or self.present, key=lambda rank: (self.header[rank].steps, -rank))

    @property
    def witness(self) -> int:
        """The rank that has taken part in the last round of those under way."""
        return max(self._under_way or self.present, key=lambda rank: (self.header[rank].rounds, -rank))

    @property
    def behind(self) -> list[int]:
        """Ranks that missed rounds of the others, as those that had joined: their centre is an old one."""
        rounds = self.header[self.witness].rounds
        return [rank for rank in self._under_way if self.header[rank].rounds < rounds]

    @property
    def radius(self) -> float:
        """The largest distance from the centre of a worker whose parameters are finite."""
        radii = self._measured.radius.tolist()
        return max((radii[rank] for rank in self.finite), default=0.0)

    @property
    def losses(self) -> Tensor:
        """Mean loss that each worker reported, [M]; NaN where none was, as of a rank that is absent."""
        return self._measured.loss.masked_fill(self._absent, math.nan)

    def observed(self, layers: int, needs: frozenset[Column], fragment: int = 0) -> Observed:
        """A policy's input; NaN in the rows of workers that are left out.

        Args:
            layers: L.
            needs: the columns that the rows have.
            fragment: see `Observed`.
        """
        left_out = ~self.usable
        sent = [column for column in Column if column in needs]
        parts = dict(zip(sent, torch.split(self._columns, max(1, layers), dim=1), strict=False))
        nothing = self._columns.new_zeros(self.size, layers)
        columns = [parts.get(column, nothing).masked_fill(left_out[:, None], math.nan) for column in Column]
        reported = [values.masked_fill(left_out, math.nan) for values in self._measured[3:]]
        return Observed(self.usable, *columns, *reported, fragment=fragment)


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
