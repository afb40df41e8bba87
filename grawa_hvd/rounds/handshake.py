"""Where ranks meet: whatever they come for, they exchange one row first, so that none waits for what others never do.

A rank comes because it starts or has loaded a checkpoint (ARRIVAL), because a round is due (ROUND) or asked for
(ROUND_NOW), or to look at the mean of the workers (CONSENSUS, LAST_CONSENSUS). All exchange rows under one name:

| one came for | another for | what happens |
|---|---|---|
| arrival | arrival | all take the place of the furthest |
| arrival | a round or the consensus | the former takes the place of the furthest; then the latter comes again |
| a round that is due | one that is asked for | RanksOutOfStepError on all |
| a round | the consensus | RanksOutOfStepError on all |
| the consensus | the consensus by other weights | ValueError on all |
| anything | nothing: it has joined | it counts as zeros |
| anything | the same, but missed rounds since it had joined | the latter takes the centre over; then all come again |
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from grawa_hvd.caller import stacklevel
from grawa_hvd.errors import RanksOutOfStepError, ScoresError
from grawa_hvd.rounds.agreement import Terms, refuse_difference
from grawa_hvd.rounds.rows import Header, Progress, Reason, Row, Rows, headers, present
from grawa_hvd.transfer import read
from grawa_hvd.transport.base import MismatchedBuffersError, Transport


class Handshake:
    """The exchange of rows among the workers of one optimizer.

    Rows have the length and lie on the device that the ranks have agreed on, so that a rank whose model has changed
    alone can say so: the digest of the terms, in the header, tells them apart. Ranks that have agreed on nothing yet
    exchange headers alone, from host memory.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._number = 0
        self._forget()

    def _forget(self) -> None:
        self._length, self._device = len(Header._fields), torch.device("cpu")

    @property
    def number(self) -> int:
        """The number of the last handshake that this rank took part in."""
        return self._number

    def exchange(self, row: Row, terms: Terms) -> Rows:
        """Exchange rows with all ranks; a collective.

        Args:
            row: this worker's.
            terms: what the ranks must agree on.

        Raises:
            ValueError: on every rank, if models or settings differ.
        """
        packed, mismatches = row.pack(), 0
        if row.header.reason != Reason.NOTHING:
            self._transport.begin()
        while True:
            try:
                # The one read of a round. All that is decided by the rows is computed in the host's memory.
                matrix = read(self._sum(packed))
            except MismatchedBuffersError:
                # A rank was absent while the others agreed; all have seen it, and exchange headers next.
                mismatches += 1
                if mismatches > 1:
                    raise
                self._forget()
                continue
            found = headers(matrix)
            if len({header.terms for header in found.values()}) > 1:
                refuse_difference(terms, self._transport)
            agreed = (self._length, self._device)
            self._length, self._device = len(packed), packed.device
            if agreed == (self._length, self._device):
                self._number = 1 + max(header.handshakes for header in found.values())
                return Rows(matrix, present(found))

    def _sum(self, packed: Tensor) -> Tensor:
        """The rows of all, [M, agreed length]: each worker fills its own row of a matrix of zeros."""
        matrix = torch.zeros(self._transport.size, self._length, dtype=torch.float64, device=self._device)
        own = packed[: self._length]
        matrix[self._transport.rank, : len(own)].copy_(own, non_blocking=True)
        self._transport.sum_(matrix.view(-1), "rows").wait()
        return matrix


# What ranks did that must not do different things; for messages.
_DID = {
    "came to a round": (Reason.ROUND,),
    "called round_now()": (Reason.ROUND_NOW,),
    "entered consensus()": (Reason.CONSENSUS, Reason.LAST_CONSENSUS),
}


def check(rows: Rows, failure: Exception | None, transport: Transport) -> None:
    """Whether the ranks can do together what they came for.

    Args:
        rows: of all workers.
        failure: what a callable of this rank's user raised: `scores`, or `period`.
        transport: the workers.

    Raises:
        RanksOutOfStepError: on every rank, if some have come for a round that is due, and others for one that is asked
            for or the consensus, or if one alone has loaded a checkpoint while the others train on.
        ValueError: on every rank, if the optimizer's state is to be averaged and differs, or the consensus is asked for
            by different weights.
        ScoresError: if a callable of the user's raised on another rank; where it raised, its own exception.
    """
    if failure is not None:
        raise failure
    failed = [rank for rank, header in rows.header.items() if header.failed]
    if failed:
        raise ScoresError(
            f"the scores or period callable raised on {transport.label(failed)}; the round was abandoned on all"
        )
    _check_reasons(rows, transport)
    _check_states(rows, transport)
    _check_loads(rows, transport)
    _check_start(rows, transport)


def _check_reasons(rows: Rows, transport: Transport) -> None:
    came = {did: ranks for did, reasons in _DID.items() if (ranks := rows.came_for(*reasons))}
    if len(came) > 1:
        first, *others = [f"{transport.label(ranks)} {did}" for did, ranks in came.items()]
        raise RanksOutOfStepError(
            f"{first} when {' and '.join(others)}: the ranks took different numbers of steps, or not all of them call "
            "consensus() or round_now() here. Every rank must make such a call, and ranks with fewer batches must "
            f"{transport.leave_early} first"
        )
    equal, last = rows.came_for(Reason.CONSENSUS), rows.came_for(Reason.LAST_CONSENSUS)
    if equal and last:
        raise ValueError(
            f"consensus(weights=) must be the same on every rank, but is 'equal' on {transport.label(equal)} and "
            f"'last' on {transport.label(last)}"
        )


def _check_states(rows: Rows, transport: Transport) -> None:
    at_round = rows.came_for(Reason.ROUND, Reason.ROUND_NOW)
    other = [rank for rank in at_round if rows.header[rank].state != rows.header[at_round[0]].state]
    if other:
        raise ValueError(
            f"the optimizer's state on {transport.label(other)} has other tensors than on "
            f'{transport.label(at_round[:1])}: optimizer_state="average" needs the same on all. Give each parameter a '
            "gradient on every worker, or on none"
        )


def _check_loads(rows: Rows, transport: Transport) -> None:
    """A rank that arrives among others under way, and was at their last handshake, has been set back alone."""
    if len(rows.arriving) == len(rows.header):
        return
    last = rows.header[rows.leader].handshakes
    alone = [rank for rank in rows.arriving if last and rows.header[rank].handshakes == last]
    if alone:
        raise RanksOutOfStepError(
            f"{transport.label(alone)} loaded a checkpoint, or called recenter(), while the other ranks trained on. Do "
            "it on every rank, or load before the first step"
        )


def _check_start(rows: Rows, transport: Transport) -> None:
    at_start = all(header.progress == Progress() for header in rows.header.values())
    if len(rows.arriving) < len(rows.header) or not at_start:
        return
    first, *others = rows.present
    other = [rank for rank in others if rows.header[rank].start != rows.header[first].start]
    if other:
        warnings.warn(
            f"the initial parameters of {transport.label(other)} differ from those of {transport.label([first])}: did "
            f"you forget {transport.broadcast}?",
            stacklevel=stacklevel(),
        )
