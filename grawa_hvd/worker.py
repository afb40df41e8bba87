"""A worker's life: it counts local steps, keeps norm estimates, stays near the centre, and starts rounds when due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from grawa_hvd import checkpoint
from grawa_hvd.averaging.policy import Column
from grawa_hvd.averaging.uniform import Uniform
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.report import Phases, Reported, RoundReport
from grawa_hvd.rounds.adopt import adopt_
from grawa_hvd.rounds.agreement import digest
from grawa_hvd.rounds.beside import EqualAverage
from grawa_hvd.rounds.consensus import plain_mean
from grawa_hvd.rounds.handshake import Handshake, check
from grawa_hvd.rounds.hosts import HostGroup, within_host
from grawa_hvd.rounds.observe import Measurement, no_columns, take_fresh_gradients
from grawa_hvd.rounds.replica import Replica
from grawa_hvd.rounds.round import Plan, Round, start_round
from grawa_hvd.rounds.rows import Header, Measured, Progress, Reason, Row, Rows
from grawa_hvd.rounds.schedule import Due
from grawa_hvd.scores import FreshScores, LocalScores
from grawa_hvd.settings import Settings
from grawa_hvd.step.fused import FusedStep
from grawa_hvd.transport.wire import Wire


class Wrapped(Protocol):
    """What a worker asks of the wrapped optimizer."""

    def names(self) -> dict[Tensor, str]:
        """The parameters, as they are now, with their names."""

    def state(self) -> Mapping[Tensor, Mapping[str, Any]]:
        """The state by parameter."""

    def reset_state(self) -> None:
        """Make the state anew."""


class Worker:
    """One rank's part in the averaging of a model.

    Args:
        wrapped: the optimizer: its parameters and its state.
        wire: how the model travels to the other workers.
        settings: what the user asked for.
        on_round: called with the report of every completed round.
    """

    def __init__(
        self,
        wrapped: Wrapped,
        wire: Wire,
        settings: Settings,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        if settings.schedule.local_period:
            wire.transport.check_subgroups()
        self._wrapped, self._on_round = wrapped, on_round
        self._wire, self._transport = wire, wire.transport
        self._settings, self._schedule, self._mix = settings, settings.schedule, settings.recipe.mix
        self._observes = Column.NORMS in self._mix.needs and isinstance(settings.source, LocalScores)
        self._handshake = Handshake(wire.transport)
        self._host: HostGroup | None = None
        self._replica: Replica | None = None
        self.reported = Reported()
        self._under_way: list[tuple[int, Round]] = []  # with the step at whose end each is to be finished
        self.restart()

    @property
    def active(self) -> bool:
        """Whether there are other workers to average with."""
        return self._transport.is_member and self._transport.size > 1

    @property
    def completed(self) -> int:
        """Rounds that are over; `rounds` counts those under way too."""
        return self.rounds - len(self._under_way)

    def restart(self) -> None:
        """Stand where a new run starts; the next step meets the other ranks anew."""
        while self._under_way:  # what is under way is received, and nothing done with it
            self._under_way.pop(0)[1].receive()
        self.steps = self.since_round = self.rounds = 0
        self.length: int | None = None if callable(self._settings.period) else self._settings.period
        self._proximity = 0.0  # of a step; known once the workers have agreed on the length of a cycle
        self.last_round: RoundReport | None = None
        self._replica = None
        self._distance: Tensor | None = None
        self._memory: Any = None  # the policy's
        self._arrived = False
        self.reported.restart()

    # The path of a local step.

    @torch.no_grad()
    def before_step(self) -> None:
        """At the first step, and the first after a load, meet the other ranks and take a place in the run."""
        if self._arrived or not self.active:
            return
        self._refresh()
        self._transport.check_model(self._model.layout.parameters)
        rows = self._meet(Reason.ARRIVAL)
        self._arrived = True
        if rows.came_for(Reason.ROUND):
            self._round(self._leaders(rows) or Due())

    @torch.no_grad()
    def fused_step(self, fused: FusedStep, optimizer: Any) -> bool:
        """Let a kernel make the local step, take in its gradient and apply proximity.

        Returns:
            False, with nothing changed, if torch must make the step.
        """
        if not self._arrived:
            return False
        rooms = self._model.rooms
        pull = self._proximity if rooms.center.known else 0.0
        made, norms = fused.step(optimizer, rooms, pull, self._observes)
        if norms is not None:
            self._model.estimate.update(norms)
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
        if self._observes and consumed:
            norms = self._model.layout.grad_norms()
            if found_inf is not None:
                norms = torch.where(found_inf > 0, -1.0, norms)
            self._model.estimate.update(norms)
        if self._proximity and self._model.rooms.center.known:
            self._model.rooms.puller.pull_(self._proximity)

    @torch.no_grad()
    def count_step(self) -> None:
        """Count a local step, and average when that is due."""
        if not self._arrived:
            return
        assert self.length is not None
        self.steps += 1
        self.since_round += 1
        while self._under_way and self._under_way[0][0] <= self.steps:
            self._finish(*self._under_way.pop(0))
        due = self._schedule.due(self.steps, self.since_round, self.length)
        if self.since_round == self.length or self.steps <= self._schedule.warm_up:
            self.since_round = 0
        if due is not None and self.active:
            self._round(due)

    # What happens now and then.

    def _round(self, due: Due) -> None:
        """Exchange rows and start the round that is due; finish it at once, or `overlap` steps later."""
        phases, source = Phases(), self._settings.source
        with phases("scores"):
            self._refresh()
            failure = None
            if isinstance(source, FreshScores) and Column.NORMS in self._mix.needs and not due.warm_up:
                failure = take_fresh_gradients(source, self._model, self.reported, due.fragment)
        rows = self._meet(Reason.ROUND, phases, failure)
        # What is due is for the one who is furthest to say: the others may have come from elsewhere.
        due = self._leaders(rows) or due
        round_ = self._started(rows, due, phases)
        if round_ is None:
            return
        if not due.within_host:
            self.rounds = 1 + max(header.rounds for header in rows.header.values())
        self.reported.restart()
        self._restart_estimate(None if round_.diverged else due.fragment)
        if self._settings.overlap and not (due.within_host or due.warm_up):
            self._under_way.append((self.steps + self._settings.overlap, round_))
        else:
            self._finish(self.steps, round_)

    @torch.no_grad()
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
        if rows.came_for(Reason.CONSENSUS):
            if rows.finite:
                with plain_mean(self._model.layout, self._settings.buffers, 0.0, self._wire):
                    return
            raise self._none_finite(rows)
        due, phases = self._leaders(rows) or Due(), Phases()
        round_ = self._started(rows, due, phases, follows=True)
        if round_ is not None:
            round_.finish()
        if round_ is not None and not due.within_host:
            self.rounds = 1 + max(header.rounds for header in rows.header.values())

    def _started(self, rows: Rows, due: Due, phases: Phases, follows: bool = False) -> Round | None:
        """The round that is due; None if it cannot take place: a host's, without all of the host's workers."""
        needs, everyone, own = self._mix.needs, list(range(rows.size)), self._transport.rank
        if due.within_host:
            group = self._host_of(rows)
            if group is None:
                return None
            rooms = self._model.plain_rooms("host", Wire(group.transport), self._settings.pull)
            plan = Plan(group.workers, group.workers.index(self._transport.rank), needs, within_host=True)
            return start_round(rooms, rows, plan, self._mix, self._memory, phases)[0]
        if due.warm_up:
            rooms = self._model.plain_rooms("warm-up", self._wire, 1.0)
            plan = Plan(everyone, own, needs, follows=follows)
            round_ = start_round(rooms, rows, plan, Uniform(), (), phases)[0]
            self._start_beside(round_, rows, follows)
            return round_
        if self._memory is None:
            self._memory = self._mix.init(rows.size, len(self._model.layout.layer_names))
        overlapped = self._settings.overlap > 0 and not follows
        plan = Plan(everyone, own, needs, due.fragment, overlapped=overlapped, follows=follows)
        try:
            round_, self._memory = start_round(self._model.rooms, rows, plan, self._mix, self._memory, phases)
        except AllWorkersDivergedError:
            self._model.estimate.restart()  # for a user who puts back good parameters and goes on
            raise
        if due.fragment in (None, self._schedule.fragments - 1):
            self._start_beside(round_, rows, follows)
        return round_

    def _start_beside(self, round_: Round, rows: Rows, follows: bool) -> None:
        """Send what takes part with equal weights: buffers, and the optimizer's state."""
        buffers, counted = self._settings.buffers, int(rows.usable.sum())
        weight = 1 / counted if rows.usable[self._transport.rank] else 0.0
        if buffers.tensors:
            average = EqualAverage(buffers.tensors, buffers.variances, weight, self._wire, "buffers", not follows)
            round_.beside.append(average)
        state = self._optimizer_state()
        if state:
            average = EqualAverage([*state.values()], {}, weight, self._wire, "state", not follows)
            round_.beside.append(average)

    def _optimizer_state(self) -> dict[str, Tensor]:
        """Name → tensor, of the state that is averaged: all of it that has the shape of its parameter."""
        if self._settings.optimizer_state != "average":
            return {}
        layout, state = self._model.layout, self._wrapped.state()
        return {
            f"{name}.{key}": value
            for name, parameter in zip(layout.names, layout.parameters, strict=True)
            for key, value in sorted(state.get(parameter, {}).items())
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape
        }

    def _host_of(self, rows: Rows) -> HostGroup | None:
        """This host's workers, if there are several, all of them have come, and any has not diverged."""
        if self._host is None:
            if len(rows.header) < rows.size:  # who is where, all workers must tell each other
                return None
            self._host = within_host(self._transport)
        workers = self._host.workers
        complete = len(workers) > 1 and set(workers) <= set(rows.header)
        return self._host if complete and rows.usable[workers].any() else None

    def _restart_estimate(self, fragment: int | None) -> None:
        """Norms of local steps are of the steps since the layer's last round; fresh ones are averaged over rounds."""
        layout = self._model.layout
        if not isinstance(self._settings.source, LocalScores):
            return
        self._model.estimate.restart(None if fragment is None else layout.indices(layout.layers_of[fragment]))

    def _finish(self, step: int, round_: Round) -> None:
        report, distance = round_.finish()
        report.step = step - (0 if round_.within_host else self._settings.overlap)
        if round_.diverged:
            self._wrapped.reset_state()
            self._model.estimate.restart()  # from what it saw while the round was under way
            if not round_.within_host:
                # The other fragments too: one left at NaN would soon poison this one again.
                self._model.rooms.puller.pull_(1.0)
        elif self._settings.optimizer_state == "reset" and not round_.within_host:
            self._wrapped.reset_state()
        if not round_.within_host:
            self._distance, self.last_round = distance, report
        if self._on_round is not None:
            self._on_round(report)

    def finish_rounds(self) -> None:
        """Finish the rounds that are under way, sooner than `overlap` says: before the parameters are looked at."""
        with torch.no_grad():
            while self._under_way:
                self._finish(*self._under_way.pop(0))

    def _meet(self, reason: Reason, phases: Phases | None = None, failure: Exception | None = None) -> Rows:
        """Exchange rows with the other ranks; while some of them arrive, let those take their places first."""
        phases = phases or Phases()
        while True:
            with phases("scores"):
                failure = failure or self._begin_cycle()
                row = self._row(reason, failure)
            with phases("waited"):
                rows = self._handshake.exchange(row, self._model.terms)
            if self._model.layout.refusal is not None:  # as on all ranks, whose terms are the same
                raise ValueError(self._model.layout.refusal)
            if not rows.header:
                return rows
            check(rows, failure, self._transport)
            self._set_length(rows.header[rows.leader].length)
            if rows.arriving or rows.behind:
                self.finish_rounds()
                self._adopt(rows)
            if reason in (Reason.ARRIVAL, Reason.NOTHING) or not (rows.arriving or rows.behind):
                return rows

    def _begin_cycle(self) -> Exception | None:
        """Ask the user for the length of a cycle that begins; what that raises is returned, since other ranks wait."""
        if callable(self._settings.period) and (self.since_round == 0 or self.length is None):
            try:
                self.length = self._schedule.length(self._progress)
            except Exception as error:
                return error
        return None

    @property
    def _progress(self) -> Progress:
        return Progress(self.steps, self.since_round, self.rounds, int(self._model.rooms.center.known))

    def _row(self, reason: Reason, failure: Exception | None) -> Row:
        """This worker's row. All rows are as long as one for a round."""
        model, needs, place = self._model, self._mix.needs, self._progress
        header = Header(
            reason, model.terms.digest, int(failure is not None), 0, self._handshake.number, self.length or 0, 0, *place
        )
        if reason is Reason.ROUND and self._settings.optimizer_state == "average":
            state = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in self._optimizer_state().items()]
            header = header._replace(state=digest(state))
        if model.layout.refusal is not None or reason is Reason.NOTHING:
            columns = no_columns(model, needs)
            return Row(header, Measured.nothing(columns.device), columns)
        measurement = Measurement(model, self._wire.small is not None or Column.DISPLACEMENTS in needs)
        if reason is Reason.ARRIVAL:
            header = header._replace(start=measurement.digest())
        is_round = reason is Reason.ROUND
        measured = measurement.measured(self._distance, self.reported if is_round else None)
        return Row(header, measured, measurement.columns(needs) if is_round else no_columns(model, needs))

    def _leaders(self, rows: Rows) -> Due | None:
        """What is due as the rank says that is furthest."""
        leader = rows.header[rows.leader]
        return self._schedule.due(leader.steps, leader.since_round, leader.length)

    def _set_length(self, length: int) -> None:
        self._schedule.check(length, self._settings.overlap)
        self.length = length
        self._proximity = self._settings.proximity / length

    def _adopt(self, rows: Rows) -> None:
        """Give those who arrive the leader's place, and who missed rounds the centre; a collective if there are any."""
        place, rank, witness = rows.header[rows.leader].progress, self._transport.rank, rows.witness
        last = rows.header[witness]
        adopting = [other for other in rows.arriving if rows.header[other].progress != place]
        if rank in adopting:
            self._model.estimate.restart()
            self.steps, self.since_round = place.steps, place.since_round
        if rank in adopting or rank in rows.behind:
            self.rounds = last.rounds
        if (adopting or rows.behind) and last.has_center:
            self._memory = adopt_(self._model.rooms, self._memory, witness, self._wire)
        elif adopting:
            self._model.rooms.forget()
        if rows.arriving and not last.has_center and self._settings.starts_at_first_step:
            self._model.start_center(rows.leader)

    @contextmanager
    def consensus(self) -> Iterator[None]:
        """Parameters are the plain mean over the workers that have not diverged inside the block; a collective."""
        if not self.active:
            yield
            return
        with torch.no_grad():
            self.finish_rounds()
            self._refresh()
            rows = self._meet(Reason.CONSENSUS)
        if not rows.finite:
            raise self._none_finite(rows)
        weight = 1 / len(rows.finite) if self._transport.rank in rows.finite else 0.0
        with plain_mean(self._model.layout, self._settings.buffers, weight, self._wire):
            yield

    @staticmethod
    def _none_finite(rows: Rows) -> AllWorkersDivergedError:
        return AllWorkersDivergedError(f"none of the {len(rows.header)} workers has finite parameters")

    # The model as it is laid out now.

    @property
    def _model(self) -> Replica:
        assert self._replica is not None
        return self._replica

    def _refresh(self) -> None:
        """Lay the model out, or anew if parameters were added, unfrozen, moved or cast; keep what is known."""
        names, old = self._wrapped.names(), self._replica
        if old is None:
            self._replica = Replica(names, self._settings, self._wire)
        elif not old.is_of(names):
            self.finish_rounds()
            self._replica = old.laid_out_anew(names)
            self._memory = None  # it may be of other layers

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre; None before the first round."""
        return None if self._replica is None else self._replica.named_center()

    # Checkpoints.

    def state_dict(self, numbers: dict[int, int]) -> dict[str, Any] | None:
        """All that a bitwise continuation needs besides the wrapped optimizer's own state; None before any step.

        A round under way is finished first.

        Args:
            numbers: id of a parameter → its number in the optimizer's state_dict.
        """
        if self.steps == 0 or self._replica is None:
            return None
        self.finish_rounds()
        return {
            "version": checkpoint.VERSION,
            "steps": self.steps,
            "since_round": self.since_round,
            "length": self.length,
            "rounds": self.rounds,
            "reported": self.reported.state(),
            "policy": self._memory,
            **self._replica.state(numbers),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any] | None, numbers: dict[int, int]) -> None:
        """Continue where `state_dict` was taken, or, given None, start the averaging afresh.

        Raises:
            ValueError: if the state is of another version, or shapes differ.
        """
        self.restart()
        if state is None:
            return
        state = checkpoint.current(state)
        self._refresh()
        self._model.load(state, numbers)
        self.reported.load(state["reported"])
        self.steps, self.rounds, self._memory = state["steps"], state["rounds"], state["policy"]
        self.length = self.length or state["length"]
        # The period may have been another.
        self.since_round = state["since_round"] % self.length if self.length else state["since_round"]
