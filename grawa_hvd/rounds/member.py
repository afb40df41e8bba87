"""One worker among the others: its place in the run, its model, what it tells them and takes over from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column
from grawa_hvd.report import Phases, Reported
from grawa_hvd.rounds.adopt import adopt_, adopt_memory, start_center_
from grawa_hvd.rounds.agreement import OrderDiffersError, digest
from grawa_hvd.rounds.handshake import Handshake, check
from grawa_hvd.rounds.observe import Measurement, no_columns
from grawa_hvd.rounds.replica import Replica
from grawa_hvd.rounds.rows import Header, Measured, Progress, Reason, Row, Rows
from grawa_hvd.rounds.schedule import Due
from grawa_hvd.settings import Settings
from grawa_hvd.transport.wire import Wire


class Wrapped(Protocol):
    """What a worker asks of the wrapped optimizer."""

    def names(self) -> dict[Tensor, str]:
        """The parameters, as they are now, with their names."""

    def reorder(self, order: list[str]) -> None:
        """Let the parameters come in the order of these names."""

    def state(self) -> Mapping[Tensor, Mapping[str, Any]]:
        """The state by parameter."""

    def reset_state(self) -> None:
        """Make the state anew."""


class Member:
    """One worker among the others.

    Args:
        wrapped: the optimizer: its parameters and its state.
        wire: how the model travels to the other workers.
        settings: what the user asked for.

    Attributes:
        steps, since_round, rounds: its place in the run; see `Progress`.
        length: τ of the cycle that it is in; None while a function of the user's has not been asked.
        proximity: the part of the way to the centre that a step goes; 0 before the workers have agreed on the length.
        distance: ‖x − c‖ when it was last pulled, [1]; None if it was not.
        memory: what the policy remembers; None before its first round.
        weights: β of each layer's last round, [M, L], the same on every rank; None before the first.
        reported: what the user reported since the last round.
        trial: the loss that held-out scores had where the run starts; None elsewhere.
    """

    def __init__(self, wrapped: Wrapped, wire: Wire, settings: Settings) -> None:
        self.wrapped, self.wire, self._settings = wrapped, wire, settings
        self._transport, self._schedule, self._needs = wire.transport, settings.schedule, settings.recipe.mix.needs
        self._handshake = Handshake(wire.transport)
        self.reported = Reported()
        self.restart()

    def restart(self) -> None:
        """Stand where a new run starts."""
        self.steps = self.since_round = self.rounds = 0
        self.length: int | None = None if callable(self._settings.period) else self._settings.period
        self.proximity = 0.0
        self.replica: Replica | None = None
        self.distance: Tensor | None = None
        self.memory: Any = None
        self.weights: Tensor | None = None
        self.trial: Reported | None = None
        self.reported.restart()

    def meet_anew(self) -> None:
        """Know nothing of the other workers, who may be others now; its place and its centre stay."""
        self._handshake = Handshake(self._transport)
        self.proximity = 0.0
        if self.replica is not None:
            self.replica.forget_plain_rooms()
        if self.weights is not None and len(self.weights) != self._transport.size:
            self.memory = self.weights = None  # they are of other workers

    @property
    def model(self) -> Replica:
        """The model as it is laid out."""
        assert self.replica is not None
        return self.replica

    @property
    def is_laid_out(self) -> bool:
        """Whether that is the model as it is now."""
        return self.replica is not None and self.replica.is_of(self.wrapped.names())

    @property
    def has_other_shapes(self) -> bool:
        """Whether a parameter has changed its shape since the model was laid out."""
        return self.replica is not None and any(p.shape != size for p, size in self.replica.sizes.items())

    @property
    def policy(self) -> str:
        """The name of the policy, by which its memory is told from another's."""
        return type(self._settings.recipe.mix).__name__

    def lay_out(self) -> None:
        """Lay the model out, or anew if parameters were added, unfrozen, moved or cast; keep what is known."""
        names = self.wrapped.names()
        if self.replica is None:
            self.replica = Replica(names, self._settings, self.wire)
        else:
            self.replica = self.replica.laid_out_anew(names)
            self.memory = self.weights = None  # they may be of other layers

    def exchange(self, reason: Reason, phases: Phases, failure: Exception | None = None) -> Rows:
        """Exchange rows with the other ranks; a collective.

        Args:
            reason: what this worker has come for.
            phases: the round's clock.
            failure: what a callable of the user's raised.

        Raises:
            ValueError: on every rank, if models or settings differ, or a model cannot be averaged.
            Exception: see `check`.
        """
        with phases("scores"):
            failure = failure or self._begin_cycle(reason)
            row = self._row(reason, failure)
        try:
            with phases("waited"):
                rows = self._handshake.exchange(row, self.model.terms)
        except OrderDiffersError as other:  # as where heads are registered from a set: parameters meet by name
            self.wrapped.reorder(other.order)
            self.lay_out()
            return self.exchange(reason, phases, failure)
        if self.model.layout.refusal is not None:  # as on all ranks, whose terms are the same
            raise ValueError(self.model.layout.refusal)
        if rows.header:
            check(rows, failure, self._transport)
            length = rows.header[rows.leader].length
            self._schedule.check(length, self._settings.overlap)
            self.length, self.proximity = length, self._settings.proximity / length
        return rows

    def due(self, rows: Rows) -> Due | None:
        """What is due as the rank says that is furthest: the others may have come from elsewhere."""
        leader = rows.header[rows.leader]
        if rows.came_for(Reason.ROUND_NOW):
            return Due(now=True)
        return self._schedule.due(leader.steps, leader.since_round, leader.length)

    def adopt(self, rows: Rows) -> None:
        """Give those who arrive the leader's place, and who missed rounds the centre; a collective if there are any.

        Where there is no common centre, each keeps its own, if it has one.
        """
        place, rank, witness = rows.header[rows.leader].progress, self._transport.rank, rows.witness
        last = rows.header[witness]
        adopting = [other for other in rows.arriving if rows.header[other].progress != place]
        if rank in adopting:
            self.model.estimate.restart()
            self.steps, self.since_round = place.steps, place.since_round
        if rank in adopting or rank in rows.behind:
            self.rounds = last.rounds
        takes_over = bool(adopting or rows.behind)
        kept = (self.memory, self.weights)
        if takes_over and not self._settings.has_common_center:
            self.memory, self.weights = adopt_memory(kept, witness, self.wire, self.model.layout.device)
        elif takes_over and last.has_center:
            self.memory, self.weights = adopt_(self.model.rooms, kept, witness, self.wire)
        elif adopting:
            self.model.rooms.forget()
        if rows.arriving and not last.has_center and self._settings.starts_at_first_step:
            start_center_(self.model.rooms, rows.leader, self.wire)

    def note_weights(self, weights: Tensor, fragment: int | None) -> None:
        """Keep the weights of a round of all workers.

        Args:
            weights: β, [M, its layers].
            fragment: the part of the model that it averages; None for all of it.
        """
        layout = self.model.layout
        if fragment is not None:
            before = self.weights
            if before is None:
                before = torch.full((len(weights), len(layout.layer_names)), 1 / len(weights), dtype=weights.dtype)
            weights = before.index_copy(1, torch.tensor(layout.layers_of[fragment]), weights)
        self.weights = weights

    def forget_center(self) -> None:
        """Have no centre, and nothing that was learnt around it; the place in the run stays."""
        if self.replica is None:
            return
        self.model.rooms.forget()
        self.model.estimate.restart()
        self.distance = self.memory = self.weights = None

    def optimizer_state(self) -> dict[str, Tensor]:
        """Name → tensor, of the state that is averaged: all of it that has the shape of its parameter."""
        if self._settings.optimizer_state != "average":
            return {}
        layout, state = self.model.layout, self.wrapped.state()
        return {
            f"{name}.{key}": value
            for name, parameter in zip(layout.names, layout.parameters, strict=True)
            for key, value in sorted(state.get(parameter, {}).items())
            if isinstance(value, Tensor) and value.is_floating_point() and value.shape == parameter.shape
        }

    def _begin_cycle(self, reason: Reason) -> Exception | None:
        """Ask the user for the length of a cycle that begins; what that raises is returned, since other ranks wait."""
        begins = self.since_round == 0 or reason is Reason.ROUND_NOW or self.length is None
        if begins and callable(self._settings.period):
            try:
                self.length = self._schedule.length(self._progress)
            except Exception as error:
                return error
        return None

    @property
    def _progress(self) -> Progress:
        return Progress(self.steps, self.since_round, self.rounds, int(self.model.rooms.center.known))

    def _row(self, reason: Reason, failure: Exception | None) -> Row:
        """This worker's row. All rows are as long as one for a round."""
        model, needs = self.model, self._needs
        header = Header(
            reason, model.terms.digest, int(failure is not None), handshakes=self._handshake.number,
            length=self.length or 0, **self._progress._asdict(),
        )  # fmt: skip
        if reason.is_round and self._settings.optimizer_state == "average":
            state = [f"{name} {tuple(value.shape)} {value.dtype}" for name, value in self.optimizer_state().items()]
            header = header._replace(state=digest(state))
        if model.layout.refusal is not None or reason is Reason.NOTHING:
            columns = no_columns(model, needs)
            return Row(header, Measured(), columns)
        measurement = Measurement(model, self.wire.small is not None or Column.DISPLACEMENTS in needs)
        if reason is Reason.ARRIVAL:
            header = header._replace(start=measurement.digest())
        told = self.reported if reason.is_round else self.trial if reason is Reason.ARRIVAL else None
        measured = measurement.measured(self.distance, told)
        return Row(header, measured, measurement.columns(needs) if reason.is_round else no_columns(model, needs))
