"""A worker's life: it counts local steps, keeps norm estimates, stays near the centre, and starts rounds when due."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.agreement import Progress, Terms
from grawa_hvd.averaging import Observed
from grawa_hvd.communicator import Communicator, HostGroup
from grawa_hvd.companion import Companion, is_fit_for_companion
from grawa_hvd.consensus import Center, plain_mean
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.fused import FusedStep
from grawa_hvd.layers import Layout, averaged, membership
from grawa_hvd.meeting import NEVER_MET, Contribution, Meeting, Purpose, State, check, exchange
from grawa_hvd.ops.reference import NO_GRADIENT
from grawa_hvd.report import Phases, Reported, RoundReport
from grawa_hvd.round import Round
from grawa_hvd.schedule import Due
from grawa_hvd.scores import FreshScores, LocalScores, NormEstimate
from grawa_hvd.settings import Settings


class Worker:
    """One rank's part in the averaging of a model.

    Args:
        names: gives the optimizer's parameters, as they are now, with their names.
        reset_optimizer: makes the wrapped optimizer's state as new, after this worker diverged.
        communicator: the workers.
        settings: what the user asked for.
        on_round: called with the report of every completed round.
    """

    _center: Center
    _host_center: Center | None
    _estimate: NormEstimate
    _terms: Terms

    def __init__(
        self,
        names: Callable[[], dict[Tensor, str]],
        reset_optimizer: Callable[[], None],
        communicator: Communicator,
        settings: Settings,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        self._names = names
        self._reset_optimizer = reset_optimizer
        self._communicator = communicator
        self._settings = settings
        self._observes = settings.averaging.uses_gradients and isinstance(settings.scores, LocalScores)
        self._proximity = settings.proximity / settings.period
        self._on_round = on_round
        self._host: HostGroup | None = None
        self._companion: Companion | None = None
        self._refusals = 0
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
        self._layout: Layout | None = None
        self._distance: Tensor | None = None
        self._arrived = False
        self.reported.restart()

    # The path of a local step.

    @torch.no_grad()
    def before_step(self) -> None:
        """At the first step, and the first after a load, meet the other ranks and take a place in the run."""
        if self._arrived or not self.active:
            return
        self._refresh_layout()
        meeting = self._meet(Purpose.ARRIVAL, self._nothing())
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
        pull = self._proximity if self._center.known else 0.0
        made, norms = fused.step(optimizer, self._layout_now, self._center, pull, self._observes)
        if norms is not None:
            self._estimate.update(norms)
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
            norms = self._layout_now.grad_norms()
            if found_inf is not None:
                norms = torch.where(found_inf > 0, -1.0, norms)
            self._estimate.update(norms)
        if self._proximity and self._center.known:
            self._center.pull_(self._proximity)

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
            self._refresh_layout()
            contribution = self._contribution(due)
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
            self._estimate.restart()
        elif isinstance(self._settings.scores, LocalScores):
            self._estimate.restart(None if due.fragment is None else self._layout_now.layers_of[due.fragment])
        if self._settings.overlap and not due.within_host:
            self._under_way.append((self.steps + self._settings.overlap, round_))
        else:
            self._finish(self.steps, round_)

    def _common_round(self, meeting: Meeting, due: Due, phases: Phases) -> Round:
        try:
            return Round(
                meeting, list(range(meeting.size)), self._layout_now, self._center, self._communicator,
                self._settings.averaging, phases, due.fragment, overlapped=self._settings.overlap > 0,
                companion=self._companion if meeting.same_age else None,
            )  # fmt: skip
        except AllWorkersDivergedError:
            self._estimate.restart()  # for a user who puts back good parameters and goes on
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
        if self._host_center is None:
            self._host_center = Center(self._layout_now)
        return Round(
            meeting, host.workers, self._layout_now, self._host_center, host.communicator, self._settings.averaging,
            phases, within_host=True,
        )  # fmt: skip

    def _finish(self, step: int, round_: Round) -> None:
        report, distance = round_.finish(self._settings.pull)
        report.step = step - (0 if round_.within_host else self._settings.overlap)
        if round_.diverged:
            self._reset_optimizer()
            self._estimate.restart()  # from what it saw while the round was under way
            if not round_.within_host:
                self._center.pull_(1.0)  # the other fragments too: one left at NaN would soon poison this one again
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
        companion = self._companion
        while True:
            with phases("scores"):
                contribution.distance = self._distance
                progress = Progress(self.steps, self.since_round, self.rounds, int(self._center.known))
                state = self._state()
                age = 0 if companion is None else companion.age
                row = Meeting.row(
                    purpose, contribution, progress, self._taken, self._layout_now, self._terms, state, age
                )
            if companion is not None:
                with phases("pack"):
                    factors = self._factors(purpose, contribution, state, companion)
                    companion.send(factors, self._communicator, self._refusals)
            with phases("waited"):
                try:
                    meeting = exchange(row, self._terms, self._communicator)
                except ValueError:  # on every rank, also those whose models are too large for a companion
                    self._refusals += 1
                    self._communicator.end_(companion.give_up() if companion is not None else {})
                    raise
            with phases("communicate"):
                if companion is not None:
                    companion.receive()
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

    def _state(self) -> State:
        from_center = self._communicator.halves and self._center.known
        return State(self._center.distances() if from_center else self._layout_now.table.norms(), from_center)

    def _factors(self, purpose: Purpose, contribution: Contribution, state: State, companion: Companion) -> Tensor:
        """This worker's w for the companion, [L]: those of a round, all ones for the plain mean, or zeros."""
        layers = len(self._layout_now.layer_names)
        if purpose is not Purpose.ROUND:
            present = state.finite if purpose is Purpose.CONSENSUS else torch.zeros_like(state.finite)
            return present.double().expand(layers)
        norms = contribution.norms if len(contribution.norms) else contribution.norms.new_zeros(layers)
        nothing = norms.new_full((1,), torch.nan)
        scores = self._settings.averaging.scores(Observed(norms[None], nothing, nothing, nothing))
        return companion.factors(scores, state.finite & norms.isfinite().all())[0]

    def _adopt(self, meeting: Meeting) -> None:
        place, rank = meeting.progress[meeting.leader], self._communicator.rank
        if rank in meeting.adopting:
            self._estimate.restart()
            self.steps, self.rounds = place.steps, place.rounds
            self._behind = meeting.behind(rank)
            self.since_round = (place.since_round - self._behind) % self._settings.period
        if place.has_center:
            self._center.adopt_(rank == meeting.leader, self._communicator)
        else:
            self._center.forget()

    def _contribution(self, due: Due) -> Contribution:
        failure = None
        source = self._settings.scores
        if self._settings.averaging.uses_gradients and isinstance(source, FreshScores):
            failure = self._take_fresh_gradients(source, due.fragment)
        norms = self._estimate.value() if self._settings.averaging.uses_gradients else self._layout_now.numbers([])
        return Contribution(norms, self.reported.row(), failure)

    def _take_fresh_gradients(self, source: FreshScores, fragment: int | None) -> Exception | None:
        """Run the user's callable; what it raises must not leave the other ranks waiting, so it is returned."""
        parameters = self._layout_now.parameters
        before = [parameter.grad for parameter in parameters]
        try:
            loss = source.gradients(parameters)
            norms = self._layout_now.grad_norms()
            if fragment is not None:  # the running means of the other layers are over rounds of theirs
                own = self._layout_now.layers_of[fragment]
                norms = torch.full_like(norms, NO_GRADIENT).index_copy(0, own, norms[own])
            self._estimate.update(norms)
            if isinstance(loss, (int, float, Tensor)):
                self.reported.add(loss=loss)
        except Exception as error:
            return error
        finally:
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
        return None

    def _nothing(self) -> Contribution:
        """A contribution as long as one to a round, for ranks that have come for something else."""
        layers = len(self._layout_now.layer_names) if self._settings.averaging.uses_gradients else 0
        return Contribution(self._layout_now.numbers([0.0] * layers))

    @contextmanager
    def consensus(self) -> Iterator[None]:
        """Parameters are the plain mean over the workers that have not diverged inside the block; a collective."""
        if not self.active:
            yield
            return
        with torch.no_grad():
            self.finish_rounds()
            self._refresh_layout()
            meeting = self._meet(Purpose.CONSENSUS, self._nothing())
        if not meeting.finite:
            raise AllWorkersDivergedError(f"none of the {len(meeting.present)} workers has finite parameters")
        weight = 1 / len(meeting.finite) if self._communicator.rank in meeting.finite else 0.0
        received = None
        if self._companion is not None:
            count = len(meeting.finite)
            received = self._companion.divided(self._layout_now.numbers([count] * len(self._layout_now.layer_names)))
        with plain_mean(self._layout_now, weight, self._communicator, received):
            yield

    # The layout, and what is laid out by it.

    @property
    def _layout_now(self) -> Layout:
        assert self._layout is not None
        return self._layout

    def _refresh_layout(self) -> None:
        """Build the layout, or build it anew if parameters were added, unfrozen, moved or cast; keep what is known."""
        old = self._layout
        known = set(map(id, old.parameters)) if old is not None else set()
        names = averaged(self._names(), lambda parameter: id(parameter) in known)
        if old is not None and old.built_from == membership(names):
            return
        self.finish_rounds()
        layout = Layout(names, self._settings.layers, self._settings.groups, self._settings.schedule.fragments)
        center = Center(
            layout, self._settings.outer_momentum, self._communicator.halves, self._settings.overlap > 0
        )  # fmt: skip
        self._host_center = None
        self._companion = self._companion_for(layout)
        estimate = NormEstimate(len(layout.layer_names), self._settings.scores.decay, layout.device)
        if old is not None:
            index_of = {id(parameter): index for index, parameter in enumerate(layout.parameters)}
            center.load({
                index_of[id(old.parameters[index])]: tensors
                for index, tensors in self._center.state().items()
                if id(old.parameters[index]) in index_of
            })  # fmt: skip
            estimate.load(layout.layer_names, self._estimate.state(old.layer_names))
        self._layout, self._center, self._estimate = layout, center, estimate
        self._terms = Terms(self._settings.describe(), self._communicator.describe(), layout.describe())

    def _companion_for(self, layout: Layout) -> Companion | None:
        averaging, schedule = self._settings.averaging, self._settings.schedule
        whole = schedule.fragments == 1 and not schedule.local_period and not self._settings.overlap
        if whole and self._communicator.exact and is_fit_for_companion(layout, averaging):
            return Companion(layout, averaging, age=0 if self._companion is None else self._companion.age + 1)
        return None

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre; None before the first round."""
        if self._layout is None or not self._center.known:
            return None
        return {self._layout.names[index]: tensors["center"] for index, tensors in self._center.state().items()}

    # Checkpoints.

    def state_dict(self, numbers: dict[int, int]) -> dict[str, Any] | None:
        """All that a bitwise continuation needs besides the wrapped optimizer's own state; None before any step.

        A round under way is finished first.

        Args:
            numbers: id of a parameter → its number in the optimizer's state_dict.
        """
        if self.steps == 0 or self._layout is None:
            return None
        self.finish_rounds()
        layout = self._layout
        return {
            "version": 1,
            "steps": self.steps,
            "since_round": self.since_round,
            "rounds": self.rounds,
            "state": {numbers[id(layout.parameters[i])]: tensors for i, tensors in self._center.state().items()},
            "estimates": self._estimate.state(layout.layer_names),
            "reported": self.reported.state(),
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
        if state["version"] != 1:
            raise ValueError(f"the checkpoint's grawa version must be 1, but is {state['version']!r}")
        self._refresh_layout()
        index_of = {numbers[id(parameter)]: index for index, parameter in enumerate(self._layout_now.parameters)}
        self._center.load({index_of[number]: saved for number, saved in state["state"].items() if number in index_of})
        self._estimate.load(self._layout_now.layer_names, state["estimates"])
        self.reported.load(state["reported"])
        self.steps, self.rounds = state["steps"], state["rounds"]
        self.since_round = state["since_round"] % self._settings.period  # which may have been another
