"""How a worker comes to the others: with its model as it is now, and ready to let those in who arrive."""

from __future__ import annotations

from grawa_hvd.report import Phases
from grawa_hvd.rounds.held_out import check_losses, try_out
from grawa_hvd.rounds.member import Member
from grawa_hvd.rounds.rows import Reason, Rows
from grawa_hvd.rounds.under_way import UnderWay
from grawa_hvd.scores import FreshScores, HeldOutScores


class Meeting:
    """The meetings of one worker with the others.

    Args:
        member: the worker.
        under_way: its rounds that are not over: they are finished before its model is laid out anew.
    """

    def __init__(self, member: Member, under_way: UnderWay) -> None:
        self._member, self._under_way = member, under_way

    def refresh(self) -> None:
        """Let the layout be that of the model as it is now."""
        if not self._member.is_laid_out:
            self._under_way.finish_all()
            self._member.lay_out()

    def arrive(self, source: FreshScores | None) -> Rows:
        """Meet the others for the first time, or anew; a collective.

        Args:
            source: of fresh norms, if the policy has one: held-out scores are tried out and compared between ranks.

        Raises:
            ValueError: on every rank, if the ranks differ in what they must agree on.
        """
        self.refresh()
        transport = self._member.wire.transport
        transport.check_model(self._member.model.layout.parameters)
        if not isinstance(source, HeldOutScores):
            return self.meet(Reason.ARRIVAL)
        rows = self.meet(Reason.ARRIVAL, failure=try_out(source, self._member))
        check_losses(rows, transport)
        return rows

    def meet(self, reason: Reason, phases: Phases | None = None, failure: Exception | None = None) -> Rows:
        """Exchange rows with the others; while some arrive, or missed rounds, let those take their places first.

        Args:
            reason: what this worker has come for.
            phases: the round's clock.
            failure: what a callable of the user's raised: it is raised on every rank.
        """
        member, phases = self._member, phases or Phases()
        while True:
            with member.model.holes.filled():
                rows = member.exchange(reason, phases, failure)
            moves = bool(rows.header and (rows.arriving or rows.behind))
            if moves:
                self._under_way.finish_all()
                with member.model.holes.filled():
                    member.adopt(rows)
            if reason in (Reason.ARRIVAL, Reason.NOTHING) or not moves:
                return rows
