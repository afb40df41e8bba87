"""Where ranks meet: whatever they come for, they exchange one row first, so that none waits for what others never do.

A rank may come because it starts or has loaded a checkpoint (ARRIVAL), because a round is due (ROUND), or to look at
the mean of the workers (CONSENSUS). All exchange rows under one name. Ranks that arrive late, after an empty first
epoch or a load that the others did not make, therefore meet the others at their next round instead of waiting for them.
"""

from __future__ import annotations

import math
import warnings
from enum import IntEnum

from torch import Tensor, cat

from grawa_hvd.agreement import Progress, Terms, refuse_difference
from grawa_hvd.averaging import Observed
from grawa_hvd.caller import stacklevel
from grawa_hvd.communicator import Communicator, MismatchedRowsError
from grawa_hvd.contribution import Contribution, State
from grawa_hvd.errors import RanksOutOfStepError, ScoresError
from grawa_hvd.layers import Layout, digest
from grawa_hvd.transfer import read

NEVER_MET = -1


class Purpose(IntEnum):
    """What a rank has come for."""

    ARRIVAL = 1
    ROUND = 2
    CONSENSUS = 3


class Meeting:
    """The rows of all ranks, in the host's memory. A row: purpose, digest of the terms, failed, progress, steps taken
    since the rank's last meeting, digest of the parameters, age of its companion, distance at the last pull, distance
    from the centre now, finite, the reported three, norms. It is zero for a rank that has joined.
    """

    HEADER = 13
    REPORTED = slice(13, 16)
    NORMS = slice(16, None)

    def __init__(self, rows: Tensor, sent: int) -> None:
        self._rows = rows
        self.bytes = sent
        header = rows[:, : self.HEADER].tolist()
        self.size = len(header)
        self.present = [rank for rank, row in enumerate(header) if row[0]]
        self.purpose = {rank: Purpose(int(header[rank][0])) for rank in self.present}
        self.terms = {header[rank][1] for rank in self.present}
        self.failed = [rank for rank in self.present if header[rank][2]]
        self.progress = {rank: Progress(*(int(number) for number in header[rank][3:7])) for rank in self.present}
        self.taken = {rank: int(header[rank][7]) for rank in self.present}
        self.parameters = {rank: header[rank][8] for rank in self.present}
        ages = {int(header[rank][9]) for rank in self.present}
        self.same_age, self.oldest = len(ages) == 1, max(ages)
        self.distances = [header[rank][10] if rank in self.present else math.nan for rank in range(self.size)]
        self.finite = [rank for rank in self.present if header[rank][12]]
        # The largest distance from the centre of a worker that counts.
        self.reach = max((header[rank][11] for rank in self.finite), default=0.0)
        self.usable = (rows[:, self.HEADER - 1] == 1) & rows[:, self.NORMS].isfinite().all(dim=1)

    @staticmethod
    def row(
        purpose: Purpose, contribution: Contribution, progress: Progress, taken: int, layout: Layout, terms: Terms,
        state: State, age: int,
    ) -> Tensor:  # fmt: skip
        """This worker's row, [K]; K depends on the layout and the policy alone."""
        start = digest([repr(read(state.sizes).tolist())]) if purpose is Purpose.ARRIVAL else 0
        failed = contribution.failure is not None
        head = [purpose, terms.digest, failed, *vars(progress).values(), taken, start, age]
        distance = layout.numbers([math.nan]) if contribution.distance is None else contribution.distance
        return cat([
            layout.numbers(head), distance, state.reach, state.finite.double(), contribution.reported,
            contribution.norms,
        ])  # fmt: skip

    @property
    def arriving(self) -> list[int]:
        """Ranks that have come to take their place in the run."""
        return [rank for rank in self.present if self.purpose[rank] is Purpose.ARRIVAL]

    @property
    def round_due(self) -> bool:
        """Whether a rank has come for a round."""
        return Purpose.ROUND in self.purpose.values()

    @property
    def leader(self) -> int:
        """The rank whose place those who arrive take: the furthest of those already under way, if there are any."""
        under_way = [rank for rank in self.present if rank not in self.arriving] or self.present
        return max(under_way, key=lambda rank: (self.progress[rank].steps, -rank))

    @property
    def adopting(self) -> list[int]:
        """Ranks that arrive and stand elsewhere than the leader."""
        place = self.progress[self.leader]
        return [rank for rank in self.arriving if self.progress[rank] != place]

    def behind(self, rank: int) -> int:
        """Steps that a rank which arrives has still to take until it is where the leader is.

        Rank 0 alone may have loaded a checkpoint while training went on: at this meeting it has not taken the steps
        that the others took since. A rank that has met nobody yet cannot be compared.
        """
        if rank == self.leader or self.leader in self.arriving or self.taken[rank] == NEVER_MET:
            return 0
        return self.taken[self.leader] - self.taken[rank]

    @property
    def losses(self) -> Tensor:
        """Mean loss that each worker reported, [M]; NaN where none was, as of a rank that has joined."""
        return self._rows[:, self.REPORTED.start].masked_fill(self._rows[:, 0] == 0, math.nan)

    def observed(self, layers: int) -> Observed:
        """A policy's input; NaN in the rows of workers that are left out."""
        norms = self._rows[:, self.NORMS]
        if norms.size(1) == 0:
            norms = norms.new_zeros(self.size, layers)
        left_out = ~self.usable[:, None]
        reported = self._rows[:, self.REPORTED].masked_fill(left_out, math.nan)
        return Observed(norms.masked_fill(left_out, math.nan), *reported.unbind(dim=1))


def exchange(row: Tensor, terms: Terms, communicator: Communicator, wire: Tensor | None = None) -> Meeting:
    """Exchange rows with all ranks; a collective.

    Args:
        row: this worker's; terms: what the ranks must agree on; communicator: the workers.
        wire: what is summed in the same message, with room for the rows at its end.

    Raises:
        ValueError: on every rank, if models or settings differ.
    """
    try:
        rows = communicator.gather(row, "rows", wire)
    except MismatchedRowsError:
        refuse_difference(terms, communicator)
    sent = rows if wire is None else wire
    # The one read of a round. All that is decided by the rows is computed in the host's memory.
    meeting = Meeting(read(rows), sent.numel() * sent.element_size())
    if len(meeting.terms) > 1:
        refuse_difference(terms, communicator)
    return meeting


def check(meeting: Meeting, contribution: Contribution, communicator: Communicator) -> None:
    """Whether the ranks can do together what they came for.

    Raises:
        RanksOutOfStepError: on every rank, if some have come for a round and others for the consensus.
        ScoresError: if the `scores` callable raised on another rank; where it raised, its own exception.
    """
    if contribution.failure is not None:
        raise contribution.failure
    if meeting.failed:
        raise ScoresError(
            f"the scores callable raised on {communicator.named(meeting.failed)}; the round was abandoned on all"
        )
    _check_purposes(meeting, communicator)
    _check_start(meeting, communicator)


def _check_purposes(meeting: Meeting, communicator: Communicator) -> None:
    came_for = {
        purpose: [rank for rank in meeting.present if meeting.purpose[rank] is purpose]
        for purpose in (Purpose.ROUND, Purpose.CONSENSUS)
    }
    if all(came_for.values()):
        at_round, at_consensus = map(communicator.named, came_for.values())
        raise RanksOutOfStepError(
            f"{at_round} came to a round when {at_consensus} entered consensus(): the ranks took different numbers "
            "of steps. Ranks with fewer batches call hvd.join() first"
        )


def _check_start(meeting: Meeting, communicator: Communicator) -> None:
    at_start = all(place == Progress() for place in meeting.progress.values())
    if len(meeting.arriving) < len(meeting.present) or not at_start:
        return
    first = meeting.present[0]
    other = [rank for rank in meeting.present if meeting.parameters[rank] != meeting.parameters[first]]
    if other:
        warnings.warn(
            f"the initial parameters of {communicator.named(other)} differ from those of "
            f"{communicator.named([first])}: did you forget "
            "hvd.broadcast_parameters(model.state_dict(), root_rank=0)?",
            stacklevel=stacklevel(),
        )
