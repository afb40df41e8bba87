"""What a worker observes of itself for a row: gradient norms, distances, and whether its parameters are finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column
from grawa_hvd.ops.reference import NO_GRADIENT
from grawa_hvd.report import Reported
from grawa_hvd.rounds.agreement import digest
from grawa_hvd.rounds.replica import Replica
from grawa_hvd.rounds.rows import Measured
from grawa_hvd.scores import FreshScores
from grawa_hvd.transfer import read


class Measurement:
    """A model as a worker finds it when ranks exchange rows.

    Args:
        replica: the model.
        by_distance: whether parameters are measured by their distance from the centre, and not by their norm.

    Attributes:
        sizes: the norm of each parameter, or its distance from the centre, [P].
    """

    def __init__(self, replica: Replica, by_distance: bool) -> None:
        self._replica = replica
        self._from_center = by_distance and replica.rooms.center.known
        self.sizes = replica.rooms.puller.distances() if self._from_center else replica.layout.table.norms()

    def measured(self, distance: Tensor | None, reported: Reported | None) -> Measured:
        """The numbers of a row.

        Args:
            distance: ‖x − c‖ when this worker was last pulled, [1]; None if it was not.
            reported: what the user reported since the last round; None if nobody asks.
        """
        radius = self.sizes.square().sum().sqrt() if self._from_center else 0.0
        told = (0.0, 0.0, 0.0) if reported is None else reported.means()
        return Measured(math.nan if distance is None else distance, radius, self.sizes.isfinite().all(), *told)

    def digest(self) -> int:
        """A number that tells parameters that differ apart; the host waits for it."""
        return digest([repr(read(self.sizes).tolist())])

    def columns(self, needs: frozenset[Column]) -> Tensor:
        """What a policy needs of the layers, one column after the other, float64 [columns · L]."""
        layout, columns = self._replica.layout, []
        if Column.NORMS in needs:
            columns.append(self._replica.estimate.value())
        if Column.DISPLACEMENTS in needs:
            known = self._from_center
            columns.append(layout.by_layer(self.sizes if known else torch.zeros_like(self.sizes)).double())
        return torch.cat(columns) if columns else layout.numbers([])


def no_columns(replica: Replica, needs: frozenset[Column]) -> Tensor:
    """Zeros in place of the columns, of a rank that has not come for a round, or has a model that is refused."""
    device = replica.layout.device if replica.layout.refusal is None else torch.device("cpu")
    return torch.zeros(len(replica.layout.layer_names) * len(needs), dtype=torch.float64, device=device)


def take_fresh_gradients(
    source: FreshScores | None, replica: Replica, reported: Reported, fragment: int | None, step: int
) -> Exception | None:
    """Run the user's callable, if there is one, and take its gradients in.

    What it raises is returned, since other ranks wait.
    """
    if source is None:
        return None
    layout = replica.layout
    try:
        with source.gradients(layout.parameters, step) as loss:
            norms = layout.grad_norms()
        if fragment is not None:  # the running means of the other layers are over rounds of theirs
            own = layout.indices(layout.layers_of[fragment])
            norms = torch.full_like(norms, NO_GRADIENT).index_copy(0, own, norms[own])
        replica.estimate.update(norms)
        if isinstance(loss, (int, float, Tensor)):
            reported.add(loss=loss)
    except Exception as error:
        return error
    return None
