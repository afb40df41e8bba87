"""The workers among each other: what `Worker` does on a rank, done for M workers that take their turns.

Estimates, rows, policy, exchange, centre, outer and pull are those of real ranks. What ranks need besides, to find each
other and to notice that they differ, has no counterpart here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column
from grawa_hvd.averaging.uniform import Uniform
from grawa_hvd.report import Phases, RoundReport
from grawa_hvd.rounds.observe import Measurement, take_fresh_gradients
from grawa_hvd.rounds.round import Plan, Round, start_round
from grawa_hvd.rounds.rows import Header, Progress, Reason, Row, Rows
from grawa_hvd.rounds.schedule import Due
from grawa_hvd.settings import Settings
from grawa_hvd.simulation.gradients import Found
from grawa_hvd.simulation.population import Population
from grawa_hvd.simulation.seats import Seat, seats
from grawa_hvd.simulation.shared import Once, SharedRows
from grawa_hvd.transfer import read


class Cohort:
    """M workers that average with each other.

    Args:
        population: their parameters.
        settings: what the user asked for.

    Attributes:
        rounds: reports of those that are over.
    """

    @torch.no_grad()
    def __init__(self, population: Population, settings: Settings) -> None:
        self._population, self._settings = population, settings
        self._seats = seats(population, settings)
        settings.check_over(self._seats[0].wire)
        self._fresh = settings.fresh
        self._steps = self._since_round = 0
        self._memory = settings.recipe.mix.init(population.size, len(self._seats[0].model.layout.layer_names))
        self.rounds: list[RoundReport] = []
        self._begin_cycle()
        if settings.starts_at_first_step:
            layout, center = self._seats[0].model.layout, self._seats[0].model.rooms.center
            center.load(dict(enumerate(layout.parameters)))

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre; None before the first round, or if each has its own."""
        return self._seats[0].model.named_center() if self._settings.has_common_center else None

    def take_in(self, found: Found) -> None:
        """Take in what was found for a local step that the optimizer has made, and apply proximity."""
        accuracies = [None] * len(self._seats) if found.accuracies is None else found.accuracies.tolist()
        proximity = self._settings.proximity / self._length
        for seat, loss, accuracy in zip(self._seats, found.losses.tolist(), accuracies, strict=True):
            seat.reported.add(loss=loss, accuracy=accuracy, samples=found.samples)
            if self._settings.observes_steps:
                seat.model.estimate.update(seat.model.layout.grad_norms())
            if proximity:
                seat.model.rooms.puller.pull_(proximity)

    def count_step(self) -> Due | None:
        """Count a local step of all workers; what is due after it."""
        schedule = self._settings.schedule
        self._steps += 1
        self._since_round += 1
        due = schedule.due(self._steps, self._since_round, self._length)
        if self._since_round == self._length or self._steps <= schedule.warm_up:
            self._since_round = 0
        return due

    def wants_fresh(self, due: Due) -> bool:
        """Whether a round goes by the gradients of one more batch."""
        return self._fresh is not None and not due.warm_up

    def round(self, due: Due, fresh: Found | None) -> None:
        """Have the round that is due.

        Args:
            due: what is due.
            fresh: gradients for the scores, if `wants_fresh`.

        Raises:
            AllWorkersDivergedError: if no worker has finite scores and parameters.
            ValueError: if the policy returns a wrong shape or a negative score.
        """
        phases = Phases()
        with phases("scores"):
            if fresh is not None:
                self._take_fresh(fresh)
            self._begin_cycle()
            rows = self._rows()
        rounds = self._started(rows, due, phases)
        for seat in self._seats:
            seat.reported.restart()
            if self._fresh is None:
                seat.model.estimate.restart()
        for number, round_ in enumerate(rounds):
            report = self._finish(number, round_)
            if number == 0:
                self.rounds.append(report)

    def _begin_cycle(self) -> None:
        """Ask for the length of a cycle that begins here."""
        if self._since_round == 0:
            self._length = self._settings.schedule.length(self._progress)
            self._settings.schedule.check(self._length, overlap=0)

    @property
    def _progress(self) -> Progress:
        has_center = self._seats[0].model.rooms.center.known
        return Progress(self._steps, self._since_round, len(self.rounds), int(has_center))

    def _take_fresh(self, found: Found) -> None:
        """Take in the gradients of one more batch, as each worker's `scores` callable would make them."""
        assert self._fresh is not None

        def give(number: int, seat: Seat) -> float:
            for name, parameter in zip(seat.model.layout.names, seat.model.layout.parameters, strict=True):
                parameter.grad = found.gradients[name][number]
            return float(found.losses[number])

        for number, seat in enumerate(self._seats):
            source = replace(self._fresh, backward=partial(give, number, seat))
            error = take_fresh_gradients(source, seat.model, seat.reported, None, self._steps)
            if error is not None:
                raise error

    def _rows(self) -> Rows:
        needs, header = self._settings.recipe.mix.needs, Header(Reason.ROUND, **self._progress._asdict())
        packed = []
        for seat in self._seats:
            measurement = Measurement(seat.model, Column.DISPLACEMENTS in needs)
            measured = measurement.measured(seat.distance, seat.reported)
            packed.append(Row(header, measured, measurement.columns(needs)).pack())
        return SharedRows(read(torch.stack(packed)), dict.fromkeys(range(len(packed)), header))

    def _started(self, rows: Rows, due: Due, phases: Phases) -> list[Round]:
        """Let every worker start the round: the sums are complete when the last of them has."""
        mix, state = (Uniform(), ()) if due.warm_up else (self._settings.recipe.mix, self._memory)
        once, needs, members, started = Once(mix=mix), self._settings.recipe.mix.needs, [*range(rows.size)], []
        for number, seat in enumerate(self._seats):
            rooms = seat.model.plain_rooms("warm-up", seat.wire, 1.0) if due.warm_up else seat.model.rooms
            plan = Plan(members, number, needs, step=self._steps)
            started.append(start_round(rooms, rows, plan, once, state, phases)[0])
        if not due.warm_up:
            self._memory = once.said[0][1]
        return started

    def _finish(self, number: int, round_: Round) -> RoundReport:
        report, self._seats[number].distance = round_.finish()
        if round_.diverged:
            self._population.reset_state(number)
            self._seats[number].model.estimate.restart()
        return report
