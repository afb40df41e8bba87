"""What each simulated worker has of its own, and the centre that they have in common."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from grawa_hvd.report import Reported
from grawa_hvd.rounds.exchange import Exchange
from grawa_hvd.rounds.outer import Replace
from grawa_hvd.rounds.pull import Puller
from grawa_hvd.rounds.replica import Replica
from grawa_hvd.settings import Settings
from grawa_hvd.simulation.population import Population
from grawa_hvd.simulation.turns import Turns
from grawa_hvd.transport.wire import Wire


@dataclass
class Seat:
    """One worker among the others.

    Attributes:
        wire: to the others.
        model: its parameters as they are laid out, and its estimates; the centre is that of all workers.
        reported: what it reported since the last round.
        distance: ‖x − c‖ when it was last pulled, [1]; None if it was not.
    """

    wire: Wire
    model: Replica
    reported: Reported = field(default_factory=Reported)
    distance: Tensor | None = None


class Still:
    """How the centre moves, for all workers but the one that moves it: not at all, and nothing is kept for it."""

    def step_(self, number: int, differences: Tensor) -> None:
        """Leave the centre."""

    def forget(self) -> None:
        """Nothing is kept."""

    def state(self) -> dict[int, dict[str, Any]]:
        """Nothing."""
        return {}

    def load(self, state: dict[int, dict[str, Any]]) -> None:
        """Nothing is kept."""


def seats(population: Population, settings: Settings) -> list[Seat]:
    """A seat for each worker, with one centre for all: on real ranks each has a copy, bitwise the same.

    Worker 0 is the first to finish a round, and moves it. Where workers average with neighbors, each has its own.

    Args:
        population: the workers' parameters.
        settings: what the user asked for.
    """
    found = []
    for worker, transport in enumerate(Turns.of_all(population.size)):
        wire = Wire(transport)
        found.append(Seat(wire, Replica(dict(population.views(worker)), settings, wire)))
    if not settings.has_common_center:
        return found
    first = found[0].model.rooms
    # As on real ranks: the average takes the place of a centre that nobody needs any more.
    in_place = isinstance(first.outer, Replace) and first.pull.anchor == "new"
    for seat in found[1:]:
        layout = seat.model.layout
        exchange = Exchange(layout, first.center, seat.wire, in_place)
        puller = Puller(layout, first.center)
        seat.model.rooms = replace(
            seat.model.rooms, center=first.center, exchange=exchange, outer=Still(), puller=puller
        )
    return found
