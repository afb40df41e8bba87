"""The rounds of one worker that have begun and are not over, and what is done when one is."""

from __future__ import annotations

import warnings

from grawa_hvd.caller import stacklevel
from grawa_hvd.modes import lasting
from grawa_hvd.report import OnRound, RoundReport
from grawa_hvd.rounds.member import Member
from grawa_hvd.rounds.round import Round

DIVERGES_FOR_EVER = 3  # rounds in a row after which a worker says so


class UnderWay:
    """Rounds that have begun, in the order in which they are finished.

    Args:
        member: the worker whose rounds they are.
        on_round: called with the report of every completed round.

    Attributes:
        last_report: of the last completed round of all workers; None before the first.
    """

    def __init__(self, member: Member, on_round: OnRound | None) -> None:
        self._member, self._on_round = member, on_round
        self._waiting: list[tuple[int, Round]] = []  # with the step at whose end each is to be finished
        self.restart()

    def __len__(self) -> int:
        return len(self._waiting)

    def restart(self) -> None:
        """Stand where a new run starts."""
        self.drop()
        self.last_report: RoundReport | None = None
        self._diverged_in_a_row = 0

    def add(self, round_: Round, step: int) -> None:
        """Let a round be finished at the end of a later step."""
        self._waiting.append((step, round_))

    def drop(self) -> None:
        """Receive what is under way, and do nothing with it: the parameters are others by now."""
        while self._waiting:
            self._waiting.pop(0)[1].receive()

    def lose(self) -> None:
        """Know of no round any more: the connections that carried them are gone."""
        self._waiting.clear()

    def finish_due(self) -> None:
        """Finish those that are to be finished at the end of this step."""
        while self._waiting and self._waiting[0][0] <= self._member.steps:
            self._finish_next()

    def finish_all(self) -> None:
        """Finish all, sooner than `overlap` says: before the parameters are looked at."""
        with lasting():
            while self._waiting:
                self._finish_next()

    def _finish_next(self) -> None:
        if self._member.has_other_shapes:  # what is under way does not fit the parameters any more
            self.drop()
        else:
            self.finish(self._waiting.pop(0)[1])

    def finish(self, round_: Round) -> None:
        """Wait for a round, move this worker as it says, and tell the user."""
        member = self._member
        with member.model.holes.filled():
            report, distance = round_.finish()
            self._diverged_in_a_row = self._diverged_in_a_row + 1 if round_.diverged else 0
            if round_.diverged:
                self._heal(round_)
            elif round_.resets_state:
                member.wrapped.reset_state()
            if not round_.within_host:
                member.distance, self.last_report = distance, report
            if self._on_round is not None:
                self._on_round(report)

    def _heal(self, round_: Round) -> None:
        """Forget what this worker knew when it diverged; the round has set it to the centre."""
        member = self._member
        member.model.estimate.restart()  # from what it saw while the round was under way
        if round_.is_of_part:
            # The other fragments too: one left at NaN would soon poison this one again.
            member.model.rooms.puller.pull_(1.0)
        member.wrapped.reset_state()
        if self._diverged_in_a_row == DIVERGES_FOR_EVER:
            warnings.warn(
                f"this worker diverged in {DIVERGES_FOR_EVER} rounds in a row, though each set it to the centre and "
                "made the optimizer's state anew. An optimizer that keeps state elsewhere than in its `state` or in "
                "optimizers, lists and dicts that it holds must be made anew by the script",
                stacklevel=stacklevel(),
            )
