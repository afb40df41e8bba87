"""Which round begins, once rows have been exchanged: of all workers, of a host's, or one that warms training up."""

from __future__ import annotations

from grawa_hvd.averaging.uniform import Uniform
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.report import Phases
from grawa_hvd.rounds.beside import EqualAverage
from grawa_hvd.rounds.concentration import Concentration
from grawa_hvd.rounds.hosts import HostGroup, within_host
from grawa_hvd.rounds.member import Member
from grawa_hvd.rounds.round import Plan, Round, start_round
from grawa_hvd.rounds.rows import Rows
from grawa_hvd.rounds.schedule import Due
from grawa_hvd.settings import Settings
from grawa_hvd.transport.wire import Wire


class Starter:
    """Begins the rounds of one worker.

    Args:
        member: the worker among the others.
        settings: what the user asked for.
    """

    def __init__(self, member: Member, settings: Settings) -> None:
        self._member, self._settings, self._mix = member, settings, settings.recipe.mix
        self._host: HostGroup | None = None
        self._concentration = Concentration(settings, member.wire.transport)

    def start(self, rows: Rows, due: Due, phases: Phases, follows: bool = False) -> Round | None:
        """Begin the round that is due, and count it; a collective of those who take part.

        Args:
            rows: of all workers; due: what is due; phases: the round's clock.
            follows: whether this worker has left early, and takes part for the others' sake alone.

        Returns:
            The round; None if there is none: a host's without all of the host's workers, or one asked for where no
            worker has moved since the last (of fragments, some have had theirs before that).
        """
        with self._member.model.holes.filled():
            round_ = self._begun(rows, due, phases, follows)
        if round_ is not None and not due.within_host:
            self._member.rounds = rows.rounds
            self._member.note_weights(round_.weights, due.fragment)
        if round_ is not None and not follows:
            self._forget_what_was_sent(round_, due)
        return round_

    def _forget_what_was_sent(self, round_: Round, due: Due) -> None:
        """Begin reports anew, and norm estimates of local steps: they are of the steps since the layer's last round."""
        member, fragment = self._member, None if round_.diverged else due.fragment
        member.reported.restart()
        if self._settings.fresh is None:
            layout = member.model.layout
            member.model.estimate.restart(None if fragment is None else layout.indices(layout.layers_of[fragment]))

    def _begun(self, rows: Rows, due: Due, phases: Phases, follows: bool) -> Round | None:
        if due.within_host:
            return self._within_host(rows, phases)
        if due.now and self._settings.fragments == 1 and not rows.has_moved:
            return None
        plan = Plan(
            list(range(rows.size)), self._member.wire.transport.rank, self._mix.needs, due.fragment,
            overlapped=self._settings.overlaps(due) and not follows, follows=follows, step=self._member.steps,
        )  # fmt: skip
        if due.warm_up:
            rooms = self._member.model.plain_rooms("warm-up", self._member.wire, 1.0)
            round_ = start_round(rooms, rows, plan, Uniform(), (), phases)[0]
        else:
            round_ = self._of_all(rows, plan, phases)
        if due.fragment in (None, self._settings.fragments - 1):
            self._start_beside(round_, rows, due, follows)
        return round_

    def _of_all(self, rows: Rows, plan: Plan, phases: Phases) -> Round:
        member = self._member
        if member.memory is None:
            member.memory = self._mix.init(rows.size, len(member.model.layout.layer_names))
        try:
            round_, member.memory = start_round(member.model.rooms, rows, plan, self._mix, member.memory, phases)
        except AllWorkersDivergedError:
            member.model.estimate.restart()  # for a user who puts back good parameters and goes on
            raise
        self._concentration.watch(round_.weights, int(rows.usable.sum()))
        return round_

    def _within_host(self, rows: Rows, phases: Phases) -> Round | None:
        group, member = self._host_of(rows), self._member
        if group is None:
            return None
        rooms = member.model.plain_rooms("host", Wire(group.transport), self._settings.pull)
        own = group.workers.index(member.wire.transport.rank)
        plan = Plan(group.workers, own, self._mix.needs, within_host=True, step=member.steps)
        nothing = self._mix.init(len(group.workers), len(member.model.layout.layer_names))
        return start_round(rooms, rows, plan, self._mix, nothing, phases)[0]

    def _host_of(self, rows: Rows) -> HostGroup | None:
        """This host's workers, if there are several, all of them have come, and any has not diverged."""
        if self._host is None:
            if len(rows.header) < rows.size:  # who is where, all workers must tell each other
                return None
            self._host = within_host(self._member.wire.transport)
        workers = self._host.workers
        complete = len(workers) > 1 and set(workers) <= set(rows.header)
        return self._host if complete and rows.usable[workers].any() else None

    def _start_beside(self, round_: Round, rows: Rows, due: Due, follows: bool) -> None:
        """Send what takes part with equal weights: buffers, and, every so many rounds, the optimizer's state."""
        settings, wire, buffers = self._settings, self._member.wire, self._settings.buffers
        number = rows.rounds // settings.fragments
        is_states_turn = due.warm_up or number % settings.optimizer_state_period == 0
        state = self._member.optimizer_state() if is_states_turn else {}
        round_.resets_state = is_states_turn and settings.optimizer_state == "reset" and not due.warm_up
        tensors = buffers.tensors
        if not (tensors or state):
            return
        weight = 1 / int(rows.usable.sum()) if rows.usable[wire.transport.rank] else 0.0
        if tensors:
            average = EqualAverage(tensors, buffers.variances, weight, wire, "buffers", not follows)
            round_.beside.append(average)
        if state:
            average = EqualAverage([*state.values()], {}, weight, wire, "state", not follows)
            round_.beside.append(average)
