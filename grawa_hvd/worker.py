"""A worker's life: it counts local steps, keeps norm estimates, stays near the centre, and starts rounds when due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.agreement import Progress, refuse
from grawa_hvd.communicator import Communicator, HostGroup
from grawa_hvd.companion import Companion
from grawa_hvd.consensus import plain_mean
from grawa_hvd.contribution import Contribution, State, nothing, state_of, to_round
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.fused import FusedStep
from grawa_hvd.meeting import NEVER_MET, Meeting, Purpose, check, exchange
from grawa_hvd.replica import Replica
from grawa_hvd.report import Phases, Reported, RoundReport
from grawa_hvd.round import Round
from grawa_hvd.schedule import Due
from grawa_hvd.scores import LocalScores
from grawa_hvd.settings import Settings

CHECKPOINT_VERSION = 2
READABLE_VERSIONS = (1, 2)


class Worker:
    """One rank's part in the averaging of a model.

    Args:
        names: gives the optimizer's parameters, as they are now, with their names.
        reset_optimizer: makes the wrapped optimizer's state as new, after this worker diverged.
        communicator: the workers.
        settings: what the user asked for.
        on_round: called with the report of every completed round.
    """

    def __init__(
        self,
        names: Callable[[], dict[Tensor, str]],
        reset_optimizer: Callable[[], None],
        communicator: Communicator,
        settings: Settings,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        if settings.schedule.local_period:
            communicator.check_hosts()
        self._names = names
        self._reset_optimizer = reset_optimizer
        self._communicator = communicator
        self._settings = settings
        self._observes = settings.averaging.uses_gradients and isinstance(settings.scores, LocalScores)
        self._proximity = settings.proximity / settings.period
        self._on_round = on_round
        self._host: HostGroup | None = None
        self._replica: Replica | None = None
        self._age = 0  # of a replica's companion at least: greater than that of any before
        self.reported = Reported()
        self._taken = NEVER_MET  # steps since the last meeting, whatever checkpoints were loaded since
        self._under_way: list[tuple[int, Round]] = []  # with the step at whose end each is to be finished
        self.restart()

    @property
    def active(self) -> bool:
        """Whether there are other workers to average with."""
        return self._communicator.active

    @property
    def completed(self) -> int:
        """Rounds that are over; `rounds` counts those under way too."""
        return self.rounds - len(self._under_way)

    def restart(self) -> None:
        """Stand where a new run starts; the next step meets the other ranks anew."""
        self._abandon()
        self.steps = self.since_round = self.rounds = 0
        self._behind = 0  # steps that the others took before the last meeting, and this rank has still to take
        self.last_round: RoundReport | None = None
        if self._replica is not None:
            self._age = self._replica.next_age
            self._replica = None
        self._distance: Tensor | None = None
        self._arrived = False
        self.reported.restart()

    # The path of a local step.

    @torch.no_grad()
    def before_step(self) -> None:
        """At the first step, and the first after a load, meet the other ranks and take a place in the run."""
        if self._arrived or not self.active:
            return
        self._refresh()
        meeting = self._meet(Purpose.ARRIVAL, nothing(self._model, self._settings))
        self._arrived = True
        if meeting.round_due:
            self._round(self._settings.schedule.due(meeting.progress[meeting.leader].since_round) or Due())

    @torch.no_grad()
    def fused_step(self, fused: FusedStep, optimizer: Any) -> bool:
        """Let a kernel make the local step, take in its gradient and apply proximity.

        Returns:
            False, with nothing changed, if torch must make the step.
        """
        if not self._arrived:
            return False
        pull = self._proximity if self._model.center.known else 0.0
        made, norms = fused.step(optimizer, self._model.layout, self._model.center, pull, self._observes)
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
        if self._proximity and self._model.center.known:
            self._model.center.pull_(self._proximity)

    @torch.no_grad()
    def count_step(self) -> None:
        """Count a local step, and average when that is due."""
        if not self._arrived:
            return
        self.steps += 1
        self.since_round += 1
        self._taken += 1
        while self._under_way and self._under_way[0][0] <= self.steps:
            self._finish(*self._under_way.pop(0))
        due = self._settings.schedule.due(self.since_round)
        self.since_round %= self._settings.period
        if self._behind:  # what was due at such a step has taken place
            self._behind -= 1
        elif due is not None and self.active:
            self._round(due)

    # What happens now and then.

    def _round(self, due: Due) -> None:
        """Meet the others and start the round that is due; finish it at once, or `overlap` steps later."""
        phases = Phases()
        with phases("scores"):
            self._refresh()
            contribution = to_round(self._model, self._settings, self.reported, due.fragment)
        meeting = self._meet(Purpose.ROUND, contribution, phases)
        # What is due is for the one who is furthest to say: the others may have come from elsewhere.
        due = self._settings.schedule.due(meeting.progress[meeting.leader].since_round) or due
        round_ = self._host_round(meeting, phases) if due.within_host else self._common_round(meeting, due, phases)
        if round_ is None:
            return
        if not due.within_host:
            self.rounds = 1 + max(place.rounds for place in meeting.progress.values())
        self.reported.restart()
        if round_.diverged:
            self._model.estimate.restart()
        elif isinstance(self._settings.scores, LocalScores):
            layout = self._model.layout
            self._model.estimate.restart(
                None if due.fragment is None else layout.indices(layout.layers_of[due.fragment])
            )
        if self._settings.overlap and not due.within_host:
            self._under_way.append((self.steps + self._settings.overlap, round_))
        else:
            self._finish(self.steps, round_)

    def _common_round(self, meeting: Meeting, due: Due, phases: Phases) -> Round:
        try:
            return Round(
                meeting, list(range(meeting.size)), self._model.layout, self._model.center, self._communicator,
                self._settings.averaging, phases, due.fragment, overlapped=self._settings.overlap > 0,
                companion=self._model.companion if meeting.same_age else None,
            )  # fmt: skip
        except AllWorkersDivergedError:
            self._model.estimate.restart()  # for a user who puts back good parameters and goes on
            raise

    def _host_round(self, meeting: Meeting, phases: Phases) -> Round | None:
        """A round of this host's workers, if all of them are there and any has not diverged."""
        if self._host is None:
            if len(meeting.present) < meeting.size:  # who is where, all workers must tell each other
                return None
            self._host = self._communicator.within_host()
        host = self._host
        if len(host.workers) == 1 or not set(host.workers) <= set(meeting.present):
            return None
        if not meeting.usable[host.workers].any():
            return None
        return Round(
            meeting, host.workers, self._model.layout, self._model.host_center, host.communicator,
            self._settings.averaging, phases, within_host=True,
        )  # fmt: skip

    def _finish(self, step: int, round_: Round) -> None:
        report, distance = round_.finish(self._settings.pull)
        report.step = step - (0 if round_.within_host else self._settings.overlap)
        if round_.diverged:
            self._reset_optimizer()
            self._model.estimate.restart()  # from what it saw while the round was under way
            if not round_.within_host:
                # The other fragments too: one left at NaN would soon poison this one again.
                self._model.center.pull_(1.0)
        if not round_.within_host:
            self._distance, self.last_round = distance, report
        if self._on_round is not None:
            self._on_round(report)

    def finish_rounds(self) -> None:
        """Finish the rounds that are under way, sooner than `overlap` says: before the parameters are looked at."""
        with torch.no_grad():
            while self._under_way:
                self._finish(*self._under_way.pop(0))

    def _abandon(self) -> None:
        """Receive what is under way and do nothing with it."""
        while self._under_way:
            self._under_way.pop(0)[1].receive()

    def _meet(self, purpose: Purpose, contribution: Contribution, phases: Phases | None = None) -> Meeting:
        """Meet the other ranks; while some of them arrive, let those take their places first."""
        phases = phases or Phases()
        if self._model.layout.refusal is not None:
            refuse(self._model.layout.refusal, self._model.terms, self._communicator)
        companion = self._model.companion
        while True:
            with phases("scores"):
                contribution.distance = self._distance
                progress = Progress(self.steps, self.since_round, self.rounds, int(self._model.center.known))
                state = state_of(self._model, self._communicator.halves)
                age = 0 if companion is None else companion.age
                row = Meeting.row(
                    purpose, contribution, progress, self._taken, self._model.layout, self._model.terms, state, age
                )
            wire = None
            if companion is not None:
                with phases("pack"):
                    factors = self._factors(purpose, contribution, state, companion)
                    wire = companion.packed(factors, self._communicator.room(len(row), companion.dtype))
            with phases("waited"):
                meeting = exchange(row, self._model.terms, self._communicator, wire)
            check(meeting, contribution, self._communicator)
            if meeting.arriving:
                self.finish_rounds()
            if companion is not None and (meeting.arriving or not meeting.same_age):
                companion.forget(meeting.oldest)
            if not (meeting.arriving and purpose is not Purpose.ARRIVAL):
                self._taken = 0
            if meeting.adopting:
                self._adopt(meeting)
            if purpose is Purpose.ARRIVAL or not meeting.arriving:
                return meeting

    def _factors(self, purpose: Purpose, contribution: Contribution, state: State, companion: Companion) -> Tensor:
        """This worker's w for the companion, [L]: those of a round, all ones for the plain mean, or zeros."""
        if purpose is Purpose.ROUND:
            return companion.own_factors(contribution.norms, contribution.reported, state.finite)
        layers = len(self._model.layout.layer_names)
        present = state.finite if purpose is Purpose.CONSENSUS else torch.zeros_like(state.finite)
        return present.double().expand(layers)

    def _adopt(self, meeting: Meeting) -> None:
        place, rank = meeting.progress[meeting.leader], self._communicator.rank
        if rank in meeting.adopting:
            self._model.estimate.restart()
            self.steps, self.rounds = place.steps, place.rounds
            self._behind = meeting.behind(rank)
            self.since_round = (place.since_round - self._behind) % self._settings.period
        if place.has_center:
            self._model.center.adopt_(rank == meeting.leader, self._communicator)
        else:
            self._model.center.forget()

    @contextmanager
    def consensus(self) -> Iterator[None]:
        """Parameters are the plain mean over the workers that have not diverged inside the block; a collective."""
        if not self.active:
            yield
            return
        with torch.no_grad():
            self.finish_rounds()
            self._refresh()
            meeting = self._meet(Purpose.CONSENSUS, nothing(self._model, self._settings))
        if not meeting.finite:
            raise AllWorkersDivergedError(f"none of the {len(meeting.present)} workers has finite parameters")
        weight = 1 / len(meeting.finite) if self._communicator.rank in meeting.finite else 0.0
        layout, received = self._model.layout, None
        if self._model.companion is not None:
            count = torch.full((len(layout.layer_names),), float(len(meeting.finite)), dtype=torch.float64)
            received = self._model.companion.divided(count)
        with plain_mean(layout, weight, self._communicator, received):
            yield

    # The model as it is laid out now.

    @property
    def _model(self) -> Replica:
        assert self._replica is not None
        return self._replica

    def _refresh(self) -> None:
        """Lay the model out, or anew if parameters were added, unfrozen, moved or cast; keep what is known."""
        names, old = self._names(), self._replica
        if old is None:
            self._replica = Replica(names, self._settings, self._communicator, self._age)
        elif not old.is_of(names):
            self.finish_rounds()
            self._replica = old.laid_out_anew(names)

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
            "version": CHECKPOINT_VERSION,
            "steps": self.steps,
            "since_round": self.since_round,
            "rounds": self.rounds,
            "reported": self.reported.state(),
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
        if state["version"] not in READABLE_VERSIONS:
            raise ValueError(
                f"the checkpoint's grawa version must be one of {READABLE_VERSIONS}, but is {state['version']!r}"
            )
        self._refresh()
        self._model.load(state, numbers)
        self.reported.load(state["reported"])
        self.steps, self.rounds = state["steps"], state["rounds"]
        self.since_round = state["since_round"] % self._settings.period  # which may have been another
