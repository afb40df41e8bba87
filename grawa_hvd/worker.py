"""A worker's life: it counts local steps, keeps norm estimates, stays near the centre, and has rounds when due."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.__future__ import get_swap_module_params_on_conversion

from grawa_hvd.averaging.policy import Column
from grawa_hvd.caller import stacklevel
from grawa_hvd.modes import lasting
from grawa_hvd.report import Phases, RoundReport
from grawa_hvd.rounds import member_state
from grawa_hvd.rounds.consensus import mean_of_workers
from grawa_hvd.rounds.held_out import check_losses, try_out
from grawa_hvd.rounds.member import Member, Wrapped
from grawa_hvd.rounds.moved import Moved
from grawa_hvd.rounds.observe import take_fresh_gradients
from grawa_hvd.rounds.round import Round
from grawa_hvd.rounds.rows import Reason, Rows
from grawa_hvd.rounds.schedule import Due
from grawa_hvd.rounds.start import Starter
from grawa_hvd.scores import FreshScores, HeldOutScores, LocalScores
from grawa_hvd.settings import Settings
from grawa_hvd.step.fused import FusedStep
from grawa_hvd.transport.wire import Wire

DIVERGES_FOR_EVER = 3  # rounds in a row after which a worker says so


class Worker:
    """One rank's part in the averaging of a model.

    Args:
        wrapped: the optimizer: its parameters and its state.
        wire: how the model travels to the other workers.
        settings: what the user asked for.
        on_round: called with the report of every completed round.

    Attributes:
        member: the worker among the others: its place in the run, its model.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        wire: Wire,
        settings: Settings,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        settings.check_over(wire)
        self._transport, self._settings, self._on_round = wire.transport, settings, on_round
        needs_norms = Column.NORMS in settings.recipe.mix.needs
        self._observes = needs_norms and isinstance(settings.source, LocalScores)
        self._fresh = settings.source if needs_norms and isinstance(settings.source, FreshScores) else None
        self.member = Member(wrapped, wire, settings)
        self._starter, self._moved = Starter(self.member, settings), Moved()
        self._generation = wire.transport.generation
        self._under_way: list[tuple[int, Round]] = []  # with the step at whose end each is to be finished
        self.restart()

    @property
    def active(self) -> bool:
        """Whether there are other workers to average with."""
        return self._transport.is_member and self._transport.size > 1

    @property
    def completed(self) -> int:
        """Rounds that are over."""
        return self.member.rounds - len(self._under_way)

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre; None before the first round."""
        return None if self.member.replica is None else self.member.replica.named_center()

    def restart(self) -> None:
        """Stand where a new run starts; the next step meets the other ranks anew."""
        self.notice_new_start()
        self._drop_rounds()
        self.member.restart()
        self.last_round: RoundReport | None = None
        self._diverged_in_a_row = 0
        self._moved.forget()
        self._arrived = False

    def _drop_rounds(self) -> None:
        """Receive what is under way, and do nothing with it: the parameters are others by now."""
        while self._under_way:
            self._under_way.pop(0)[1].receive()

    @lasting()
    def recenter(self) -> None:
        """Forget the centre and what goes with it; the next step meets the other ranks anew."""
        self._drop_rounds()
        if self.member.replica is not None:
            self.member.forget_center()
        self._moved.forget()
        self._arrived = False

    def notice_new_start(self) -> None:
        """Where the backend was started anew since, as in an elastic job: the next step meets the other ranks anew.

        A round that was under way is lost with the connections that carried it.
        """
        if self._generation == self._transport.generation:
            return
        self._generation = self._transport.generation
        self._under_way.clear()
        self._arrived = False
        self.member.meet_anew()
        self._starter = Starter(self.member, self._settings)

    # The path of a local step.

    @torch.no_grad()
    def before_step(self) -> None:
        """At the first step, after a load and after a new start, meet the other ranks and take a place in the run."""
        self.notice_new_start()
        if self._arrived:
            self._moved.step_begins(self.member.model.first)
        elif self.active:
            self._arrive()

    def _arrive(self) -> Due | None:
        """Meet the other ranks, take a place in the run, and part in the round that they are at: that is returned."""
        self._refresh()
        self._transport.check_model(self.member.model.layout.parameters)
        failure = try_out(self._fresh, self.member) if isinstance(self._fresh, HeldOutScores) else None
        rows = self._meet(Reason.ARRIVAL, failure=failure)
        if isinstance(self._fresh, HeldOutScores):
            check_losses(rows, self._transport)
        self._arrived = True
        if not rows.came_for(Reason.ROUND, Reason.ROUND_NOW):
            return None
        due = self.member.due(rows) or Due()
        self._round(due)
        return due

    @torch.no_grad()
    def fused_step(self, fused: FusedStep, optimizer: Any) -> bool:
        """Let a kernel make the local step, take in its gradient and apply proximity.

        Returns:
            False, with nothing changed, if torch must make the step.
        """
        if not self._arrived:
            return False
        model = self.member.model
        pull = self.member.proximity if model.rooms.center.known else 0.0
        made, norms = fused.step(optimizer, model.rooms, pull, self._observes)
        if model.holes:
            model.holes.after_pull()
        if norms is not None:
            model.estimate.update(norms)
        return made

    @torch.no_grad()
    def take_in(self, consumed: bool = True, found_inf: Tensor | None = None) -> None:
        """Take in the gradient of a local step that torch made, and apply proximity.

        Args:
            consumed: False if the step left the parameters alone, because its gradients had overflowed.
            found_inf: the same where only the device knows: positive then.
        """
        if not self._arrived:
            return
        try:
            self._take_in(consumed, found_inf)
        except RuntimeError:
            if self.member.is_laid_out:
                raise
            self._refresh()  # a parameter has changed its shape since the last step
            self._take_in(consumed, found_inf)

    def _take_in(self, consumed: bool, found_inf: Tensor | None) -> None:
        model = self.member.model
        if self._observes and consumed:
            norms = model.layout.grad_norms()
            if found_inf is not None:
                norms = torch.where(found_inf > 0, -1.0, norms)
            model.estimate.update(norms)
        if self.member.proximity and model.rooms.center.known:
            model.rooms.puller.pull_(self.member.proximity)
            if model.holes:
                model.holes.after_pull()

    @torch.no_grad()
    def count_step(self) -> None:
        """Count a local step, and average when that is due."""
        if not self._arrived:
            return
        member, schedule = self.member, self._settings.schedule
        assert member.length is not None
        member.steps += 1
        member.since_round += 1
        while self._under_way and self._under_way[0][0] <= member.steps:
            self._finish_next()
        due = schedule.due(member.steps, member.since_round, member.length)
        if member.since_round == member.length or member.steps <= schedule.warm_up:
            member.since_round = 0
        if due is not None and self.active:
            self._round(due)
        self._moved.step_ends(member.model.first)

    # What happens now and then.

    @torch.no_grad()
    def round_now(self) -> None:
        """A round of the whole model wherever the cycle is, after which a new one begins; a collective."""
        self.notice_new_start()
        if not self.active:
            return
        self.finish_rounds()
        met = None if self._arrived else self._arrive()
        if met is None or not met.now:
            self._round(Due(now=True))

    def _round(self, due: Due) -> None:
        """Exchange rows and start the round that is due; finish it at once, or `overlap` steps later."""
        member, phases = self.member, Phases()
        with phases("scores"):
            self._refresh()
            failure = None
            if self._fresh is not None and not due.warm_up:
                failure = take_fresh_gradients(self._fresh, member.model, member.reported, due.fragment, member.steps)
        rows = self._meet(Reason.ROUND_NOW if due.now else Reason.ROUND, phases, failure)
        self._moved.at_round(rows.distances[self._transport.rank])
        due = member.due(rows) or due
        if due.now:
            member.since_round = 0
        round_ = self._started(rows, due, phases)
        if round_ is None:
            return
        member.reported.restart()
        if self._fresh is None:  # norms of local steps are of the steps since the layer's last round
            layout, fragment = member.model.layout, None if round_.diverged else due.fragment
            member.model.estimate.restart(None if fragment is None else layout.indices(layout.layers_of[fragment]))
        if self._settings.overlaps(due):
            self._under_way.append((member.steps + self._settings.overlap, round_))
        else:
            self._finish(round_)

    @lasting()
    def follow(self) -> None:
        """Take part in what the others do next, with nothing to say, as a rank that has no more data.

        A round of its own that is under way is finished. After that its parameters stay as they are, and its centre
        moves as that of the others does.
        """
        self.finish_rounds()
        self._refresh()
        rows = self._meet(Reason.NOTHING)
        if rows.arriving or not rows.header:
            return
        if rows.came_for(Reason.CONSENSUS, Reason.LAST_CONSENSUS):
            with mean_of_workers(self.member, self._settings.buffers, rows):
                return
        round_ = self._started(rows, self.member.due(rows) or Due(), Phases(), follows=True)
        if round_ is not None:
            round_.finish()

    def _started(self, rows: Rows, due: Due, phases: Phases, follows: bool = False) -> Round | None:
        with self.member.model.holes.filled():
            round_ = self._starter.start(rows, due, phases, follows)
        if round_ is not None and not due.within_host:
            self.member.rounds = rows.rounds
            self.member.note_weights(round_.weights, due.fragment)
        return round_

    def _finish(self, round_: Round) -> None:
        with self.member.model.holes.filled():
            self._finish_filled(round_)

    def _finish_filled(self, round_: Round) -> None:
        member, (report, distance) = self.member, round_.finish()
        self._diverged_in_a_row = self._diverged_in_a_row + 1 if round_.diverged else 0
        if round_.diverged:
            member.model.estimate.restart()  # from what it saw while the round was under way
            if round_.is_of_part:
                # The other fragments too: one left at NaN would soon poison this one again.
                member.model.rooms.puller.pull_(1.0)
            member.wrapped.reset_state()
            self._tell_of_divergence()
        elif round_.resets_state:
            member.wrapped.reset_state()
        if not round_.within_host:
            member.distance, self.last_round = distance, report
        if self._on_round is not None:
            self._on_round(report)

    def _tell_of_divergence(self) -> None:
        if self._diverged_in_a_row == DIVERGES_FOR_EVER:
            warnings.warn(
                f"this worker diverged in {DIVERGES_FOR_EVER} rounds in a row, though each set it to the centre and "
                "made the optimizer's state anew. An optimizer that keeps state elsewhere than in its `state` or in "
                "optimizers, lists and dicts that it holds must be made anew by the script",
                stacklevel=stacklevel(),
            )

    def finish_rounds(self) -> None:
        """Finish the rounds that are under way, sooner than `overlap` says: before the parameters are looked at."""
        self.notice_new_start()
        with lasting():
            while self._under_way:
                self._finish_next()

    def _finish_next(self) -> None:
        if self.member.has_other_shapes:  # what is under way does not fit the parameters any more
            self._drop_rounds()
        else:
            self._finish(self._under_way.pop(0)[1])

    def _meet(self, reason: Reason, phases: Phases | None = None, failure: Exception | None = None) -> Rows:
        """Exchange rows with the others; while some arrive, or missed rounds, let those take their places first."""
        phases = phases or Phases()
        while True:
            with self.member.model.holes.filled():
                rows = self.member.exchange(reason, phases, failure)
            moves = bool(rows.header and (rows.arriving or rows.behind))
            if moves:
                self.finish_rounds()
                with self.member.model.holes.filled():
                    self.member.adopt(rows)
            if reason in (Reason.ARRIVAL, Reason.NOTHING) or not moves:
                return rows

    def _refresh(self) -> None:
        if not self.member.is_laid_out:
            self.finish_rounds()
            self.member.lay_out()

    def consensus(self, weights: str) -> AbstractContextManager[None]:
        """Parameters are the mean over the workers that have not diverged inside the block; a collective."""
        if weights not in ("equal", "last"):
            raise ValueError(f'weights must be "equal" or "last", but is {weights!r}')
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
            self.finish_rounds()
            self._refresh()
            rows = self._meet(reason)
        with mean_of_workers(self.member, self._settings.buffers, rows):
            if get_swap_module_params_on_conversion():
                self.let_go()
            yield

    # Checkpoints.

    @lasting()
    def state_dict(self, numbers: dict[int, int]) -> dict[str, Any] | None:
        """All that a bitwise continuation needs besides the wrapped optimizer's own state; None before any step.

        A round under way is finished first.

        Args:
            numbers: id of a parameter → its number in the optimizer's state_dict.
        """
        if self.member.steps == 0 or self.member.replica is None:
            return None
        self.finish_rounds()
        if self.member.has_other_shapes:
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
