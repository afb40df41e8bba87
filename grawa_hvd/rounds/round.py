"""One round, once the workers have exchanged rows: mix, exchange, outer, pull."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Averaging, Column
from grawa_hvd.model.layout import Layout
from grawa_hvd.report import Phases, RoundReport
from grawa_hvd.rounds.beside import EqualAverage
from grawa_hvd.rounds.center import Center
from grawa_hvd.rounds.exchange import Exchange, Incoming
from grawa_hvd.rounds.outer import Outer
from grawa_hvd.rounds.pull import Pull, Puller, Snapshot
from grawa_hvd.rounds.rows import Rows
from grawa_hvd.transfer import send


@dataclass
class Rooms:
    """What a round works on: the centre of some workers, what moves it, and what moves the parameters toward it."""

    layout: Layout
    center: Center
    exchange: Exchange
    outer: Outer
    pull: Pull
    puller: Puller

    def forget(self) -> None:
        """Have no centre, as after a round that broke off and left parts of sums behind."""
        self.center.forget()
        self.exchange.forget()
        self.outer.forget()


class Round:
    """A round under way.

    Args:
        rooms: what it works on.
        report: what is known of it so far.
        phases: its clock.
        strength: the part of the way that this worker is pulled; see `Pull.strength`.
        diverged: whether this worker has nothing worth keeping: it becomes the centre.

    Attributes:
        weights: of the workers, β, one column a layer that is averaged.
        beside: what takes part with equal weights.
        resets_state: whether the optimizer's state is to be made anew after the round.
    """

    def __init__(
        self,
        rooms: Rooms,
        report: RoundReport,
        phases: Phases,
        strength: float | Callable[[Tensor], Tensor],
        diverged: bool,
    ) -> None:
        self._rooms, self._report, self._phases = rooms, report, phases
        self._strength = 1.0 if diverged else strength
        self.diverged, self.within_host, self.weights = diverged, report.within_host, report.weights
        self._incoming: list[Incoming] = []
        self.beside: list[EqualAverage] = []
        self.resets_state = False
        self._snapshot: Snapshot | None = None
        layout = rooms.layout
        self._distances = torch.zeros(len(layout.parameters), dtype=torch.float64, device=layout.device)

    def start(self, fragment: int | None, weights: Tensor, radius: float, overlapped: bool) -> None:
        """Pack and send every bucket, each while those before it travel; a collective.

        Args:
            fragment: the part of the model that is averaged; None for all of it.
            weights: this worker's, one a layer, in the host's memory, [L].
            radius: see `Exchange.start`.
            overlapped: whether training goes on before `finish`.
        """
        rooms, layout = self._rooms, self._rooms.layout
        numbers = [number for number, bucket in enumerate(layout.buckets) if fragment in (None, bucket.fragment)]
        with self._phases("pack"):
            own = send(weights, layout.device)[layout.layer_of]
            if overlapped and not self.diverged:
                self._snapshot = Snapshot(layout, rooms.center, numbers)
            try:
                self._incoming = [rooms.exchange.start(number, own, radius) for number in numbers]
            except BaseException:
                rooms.forget()
                raise
        if rooms.pull.anchor == "old" and not self.diverged:
            with self._phases("blend"):
                self._pull_all()

    def finish(self) -> tuple[RoundReport, Tensor]:
        """Receive the sums, move the centre and pull this worker, a bucket while those after it travel.

        Returns:
            The report, and this worker's ‖x − c‖ before the pull, [1]; NaN if it had diverged.
        """
        rooms, sent = self._rooms, self._report.bytes
        strength = self._strength
        is_new = rooms.pull.anchor == "new" or self.diverged
        try:
            for incoming in self._incoming:
                with self._phases("communicate"):
                    incoming.sum.wait()
                with self._phases("blend"):
                    if incoming.differences is not None:
                        rooms.outer.step_(incoming.bucket, incoming.differences)
                    rooms.center.note(rooms.layout.buckets[incoming.bucket].members)
                    if is_new and not callable(strength):
                        self._pull(incoming.bucket, strength)
                sent += incoming.sum.bytes
            for average in self.beside:
                with self._phases("communicate"):
                    average.wait()
                with self._phases("blend"):
                    average.replace_()
                sent += average.bytes
            if is_new and callable(strength):
                with self._phases("blend"):
                    self._pull_all()
        except BaseException:
            rooms.forget()
            raise
        distance = self._distances.square().sum().sqrt()[None]
        if self.diverged:
            distance.fill_(math.nan)
        return replace(self._report, bytes=sent, phases=dict(self._phases.seconds)), distance

    def receive(self) -> None:
        """Wait for the sums and do nothing with them, whether they come or fail, as with a peer that has ended."""
        waits = [*(incoming.sum.wait for incoming in self._incoming), *(average.wait for average in self.beside)]
        for wait in waits:
            with suppress(Exception):
                wait()

    def _pull_all(self) -> None:
        strength: float | Tensor | Callable[[Tensor], Tensor] = self._strength
        if callable(strength):
            strength = strength(self._rooms.puller.distances().square().sum().sqrt())
        assert not callable(strength)
        for incoming in self._incoming:
            self._pull(incoming.bucket, strength)

    def _pull(self, number: int, strength: float | Tensor) -> None:
        if self._snapshot is None or self._rooms.pull.anchor == "old":
            self._rooms.puller.pull_bucket_(number, strength, self._distances)
        else:
            first = self._rooms.layout.buckets[number].indices[:1]
            self._distances[first] = self._snapshot.pull_bucket_(number, strength)


@dataclass(frozen=True)
class Plan:
    """What is done in a round, and by whom.

    Attributes:
        members: the workers that average with each other: their ranks among those of the rows.
        own: which of them this worker is.
        columns: those of the rows.
        fragment: the part of the model; None for all of it.
        within_host: whether the members are those of one host.
        overlapped: whether training goes on before the round is finished.
        follows: whether this worker has left early, and takes part for the others' sake alone.
        step: this worker's local steps so far.
    """

    members: list[int]
    own: int
    columns: frozenset[Column]
    fragment: int | None = None
    within_host: bool = False
    overlapped: bool = False
    follows: bool = False
    step: int = 0


def start_round(rooms: Rooms, rows: Rows, plan: Plan, mix: Averaging, state: Any, phases: Phases) -> tuple[Round, Any]:
    """Weigh the workers by their rows, and start the sums; a collective of the members.

    Args:
        rooms: what the round works on; rows: of all workers; plan: what is to be done; phases: the round's clock.
        mix: who counts how much; state: what it remembers.

    Returns:
        The round, and what the policy remembers.

    Raises:
        AllWorkersDivergedError: on every rank, if no member has finite columns and parameters.
        ValueError: on every rank, if the policy returns a wrong shape or a negative score.
    """
    layout = rooms.layout
    with phases("scores"):
        observed = rows.observed(len(layout.layer_names), plan.columns).of(plan.members)
        mixing, state = mix(observed, state)
    report = RoundReport(
        mixing.weights, mixing.scores, layout.layer_names, rows.losses[plan.members], rows.bytes, rows.distances,
        phases.seconds, plan.within_host, plan.step,
    )  # fmt: skip
    if plan.fragment is not None:
        report = _of_layers(report, layout.layers_of[plan.fragment])
    diverged = not (plan.follows or bool(observed.usable[plan.own]))
    strength = 0.0 if plan.follows else rooms.pull.strength(len(plan.members))
    round_ = Round(rooms, report, phases, strength, diverged)
    round_.start(plan.fragment, mixing.weights[plan.own], rows.radius, plan.overlapped)
    return round_, state


def _of_layers(report: RoundReport, layers: list[int]) -> RoundReport:
    names = [report.layer_names[layer] for layer in layers]
    return replace(report, weights=report.weights[:, layers], scores=report.scores[:, layers], layer_names=names)
