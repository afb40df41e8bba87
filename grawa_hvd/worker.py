"""A worker's life: it counts local steps, and has rounds with the others when they are due."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.__future__ import get_swap_module_params_on_conversion

from grawa_hvd.checked import check_choice
from grawa_hvd.modes import lasting
from grawa_hvd.report import OnRound, Phases, RoundReport
from grawa_hvd.rounds import member_state
from grawa_hvd.rounds.consensus import mean_of_workers
from grawa_hvd.rounds.meeting import Meeting
from grawa_hvd.rounds.member import Member, Wrapped
from grawa_hvd.rounds.moved import Moved
from grawa_hvd.rounds.observe import take_fresh_gradients
from grawa_hvd.rounds.pause import CONSENSUS, SCORES, Pause
from grawa_hvd.rounds.rows import Reason, Rows
from grawa_hvd.rounds.schedule import Due
from grawa_hvd.rounds.start import Starter
from grawa_hvd.rounds.under_way import UnderWay
from grawa_hvd.settings import Settings
from grawa_hvd.transport.wire import Wire


class Worker:
    """One rank's part in the averaging of a model.

    Args:
        wrapped: the optimizer: its parameters and its state.
        wire: how the model travels to the other workers.
        settings: what the user asked for.
        on_round: called with the report of every completed round.

    Attributes:
        member: the worker among the others: its place in the run, its model.
        arrived: whether it has met the other workers.
    """

    def __init__(self, wrapped: Wrapped, wire: Wire, settings: Settings, on_round: OnRound | None = None) -> None:
        settings.check_over(wire)
        self._transport, self._settings = wire.transport, settings
        self.member = Member(wrapped, wire, settings)
        self._under_way = UnderWay(self.member, on_round)
        self._meeting = Meeting(self.member, self._under_way)
        self._starter, self._moved = Starter(self.member, settings), Moved()
        self._generation = wire.transport.generation
        self.arrived, self._pause = False, Pause()

    @property
    def active(self) -> bool:
        """Whether there are other workers to average with."""
        return self._transport.is_member and self._transport.size > 1

    @property
    def completed(self) -> int:
        """Rounds that are over."""
        return self.member.rounds - len(self._under_way)

    @property
    def last_round(self) -> RoundReport | None:
        """What the last round did; None before the first."""
        return self._under_way.last_report

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre; None before the first round."""
        return None if self.member.replica is None else self.member.replica.named_center()

    def refresh(self) -> None:
        """Let the layout be that of the model as it is now."""
        self._meeting.refresh()

    def restart(self) -> None:
        """Stand where a new run starts; the next step meets the other ranks anew."""
        self.notice_new_start()
        self._under_way.restart()
        self.member.restart()
        self._moved.forget()
        self.arrived = False

    @lasting()
    def recenter(self) -> None:
        """Forget the centre and what goes with it; the next step meets the other ranks anew."""
        self._under_way.drop()
        self.member.forget_center()
        self._moved.forget()
        self.arrived = False

    def notice_new_start(self) -> None:
        """Where the backend was started anew since, as in an elastic job: the next step meets the other ranks anew.

        A round that was under way is lost with the connections that carried it.
        """
        if self._generation == self._transport.generation:
            return
        self._generation = self._transport.generation
        self._under_way.lose()
        self.arrived = False
        self.member.meet_anew()
        self._starter = Starter(self.member, self._settings)

    # The path of a local step.

    @torch.no_grad()
    def before_step(self) -> None:
        """At the first step, after a load and after a new start, meet the other ranks and take a place in the run."""
        self._pause.refuse("step")
        self.notice_new_start()
        if self.arrived:
            self._moved.step_begins(self.member.model.first)
        elif self.active:
            self._arrive()

    def _arrive(self) -> Due | None:
        """Meet the other ranks, take a place in the run, and part in the round that they are at: that is returned."""
        with self._pause(SCORES):
            rows = self._meeting.arrive(self._settings.fresh)
        self.arrived = True
        if not rows.came_for(Reason.ROUND, Reason.ROUND_NOW):
            return None
        due = self.member.due(rows) or Due()
        self._round(due)
        return due

    @torch.no_grad()
    def count_step(self) -> None:
        """Count a local step, and average when that is due."""
        if not self.arrived:
            return
        member, schedule = self.member, self._settings.schedule
        assert member.length is not None
        member.steps += 1
        member.since_round += 1
        self._under_way.finish_due()
        due = schedule.due(member.steps, member.since_round, member.length)
        if member.since_round == member.length or member.steps <= schedule.warm_up:
            member.since_round = 0
        if due is not None and self.active:
            self._round(due)
        self._moved.step_ends(member.model.first)

    @torch.no_grad()
    def round_now(self) -> None:
        """A round of the whole model wherever the cycle is, after which a new one begins; a collective."""
        self._pause.refuse("round_now")
        self._finish_rounds()
        if not self.active:
            return
        met = None if self.arrived else self._arrive()
        if met is None or not met.now:
            self._round(Due(now=True))

    def _round(self, due: Due) -> None:
        """Exchange rows and start the round that is due; finish it at once, or `overlap` steps later."""
        member, phases, fresh = self.member, Phases(), None if due.warm_up else self._settings.fresh
        with phases("scores"), self._pause(SCORES):
            self._meeting.refresh()
            failure = take_fresh_gradients(fresh, member.model, member.reported, due.fragment, member.steps)
        rows = self._meeting.meet(Reason.ROUND_NOW if due.now else Reason.ROUND, phases, failure)
        self._moved.at_round(rows.distances[self._transport.rank])
        due = member.due(rows) or due
        if due.now:
            member.since_round = 0
        round_ = self._starter.start(rows, due, phases)
        if round_ is not None and self._settings.overlaps(due):
            self._under_way.add(round_, member.steps + self._settings.overlap)
        elif round_ is not None:
            self._under_way.finish(round_)

    @lasting()
    def follow(self) -> None:
        """Take part in what the others do next, with nothing to say, as a rank that has no more data.

        A round of its own that is under way is finished. After that its parameters stay as they are, and its centre
        moves as that of the others does.
        """
        rows = self._look(Reason.NOTHING)
        if rows.arriving or not rows.header:
            return
        if rows.came_for(Reason.CONSENSUS, Reason.LAST_CONSENSUS):
            with mean_of_workers(self.member, self._settings.buffers, rows):
                return
        round_ = self._starter.start(rows, self.member.due(rows) or Due(), Phases(), follows=True)
        if round_ is not None:
            round_.finish()

    def consensus(self, weights: str) -> AbstractContextManager[None]:
        """Parameters are the mean over the workers that have not diverged inside the block; a collective."""
        check_choice("weights", weights, "equal", "last")
        return self._consensus(Reason.CONSENSUS if weights == "equal" else Reason.LAST_CONSENSUS)

    def let_go(self) -> None:
        """Hold no parameter but by its Python object: torch swaps none that others hold."""
        if self.member.replica is not None:
            self.member.model.layout.let_go()

    @contextmanager
    def _consensus(self, reason: Reason) -> Iterator[None]:
        if not self.active:
            yield
            return
        with lasting():
            rows = self._look(reason)
        with mean_of_workers(self.member, self._settings.buffers, rows), self._pause(CONSENSUS):
            if get_swap_module_params_on_conversion():
                self.let_go()
            yield

    def _look(self, reason: Reason) -> Rows:
        """Meet the others with the parameters as no round under way leaves them."""
        self._finish_rounds()
        self._meeting.refresh()
        return self._meeting.meet(reason)

    def _finish_rounds(self) -> None:
        self.notice_new_start()
        self._under_way.finish_all()

    @lasting()
    def state_dict(self, numbers: dict[int, int]) -> dict[str, Any] | None:
        """All that a bitwise continuation needs besides the wrapped optimizer's own state; None before any step.

        A round under way is finished first.

        Args:
            numbers: id of a parameter → its number in the optimizer's state_dict.
        """
        if self.member.steps == 0 or self.member.replica is None:
            return None
        self._finish_rounds()
        if not self.member.is_laid_out:  # parameters have gone or come, or have another shape
            self.member.lay_out()
        return member_state.state_of(self.member, numbers)

    @lasting()
    def load_state_dict(self, state: dict[str, Any] | None, numbers: dict[int, int]) -> None:
        """Continue where `state_dict` was taken, or, given None, start the averaging afresh.

        Raises:
            ValueError: if the state is of another version, or shapes differ.
        """
        self.restart()
        if state is not None:
            member_state.load(self.member, state, numbers)
