"""What a worker brings to a meeting: its norms, what its user reported, and the state of its parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from grawa_hvd.ops.reference import NO_GRADIENT
from grawa_hvd.replica import Replica
from grawa_hvd.report import Reported
from grawa_hvd.scores import FreshScores
from grawa_hvd.settings import Settings


@dataclass
class Contribution:
    """What a worker brings to a round.

    Attributes:
        norms: its estimates ê, float64 [L]; empty for a policy that does not use gradients.
        reported: mean loss, mean accuracy, samples, float64 [3].
        failure: what its `scores` callable raised.
        distance: ‖x − c‖ when it was last pulled, [1]; NaN, or None, if it was not.
    """

    norms: Tensor
    reported: Tensor
    failure: Exception | None = None
    distance: Tensor | None = None


class State:
    """The parameters of a worker as a meeting finds them.

    Args:
        sizes: the norm of each parameter, or its distance from the centre, [P].
        from_center: whether it is the distance.

    Attributes:
        finite: whether all parameters are, bool, [1].
        reach: ‖x − c‖, float64, [1]; 0 where only the norms are known.
    """

    def __init__(self, sizes: Tensor, from_center: bool) -> None:
        self.sizes = sizes
        self.finite = sizes.isfinite().all()[None]
        self.reach = sizes.double().square().sum().sqrt()[None] if from_center else sizes.new_zeros(1).double()


def to_round(replica: Replica, settings: Settings, reported: Reported, fragment: int | None) -> Contribution:
    """What a worker brings to a round of one fragment, or of the whole model."""
    if not settings.averaging.uses_gradients:
        return Contribution(replica.layout.numbers([]), reported.row(replica.layout.device))
    source, failure = settings.scores, None
    if isinstance(source, FreshScores):
        failure = _take_fresh_gradients(source, replica, reported, fragment)
    return Contribution(replica.estimate.value(), reported.row(replica.layout.device), failure)


def nothing(replica: Replica, settings: Settings) -> Contribution:
    """A contribution as long as one to a round, for ranks that have come for something else."""
    layers = len(replica.layout.layer_names) if settings.averaging.uses_gradients else 0
    return Contribution(replica.layout.numbers([0.0] * layers), replica.layout.numbers([0.0, 0.0, 0.0]))


def state_of(replica: Replica, halves: bool) -> State:
    """The state of the parameters; with differences in 16 bits, their distance from the centre."""
    from_center = halves and replica.center.known
    return State(replica.center.distances() if from_center else replica.layout.table.norms(), from_center)


def _take_fresh_gradients(
    source: FreshScores, replica: Replica, reported: Reported, fragment: int | None
) -> Exception | None:
    """Run the user's callable; what it raises must not leave the other ranks waiting, so it is returned."""
    layout = replica.layout
    before = [parameter.grad for parameter in layout.parameters]
    try:
        loss = source.gradients(layout.parameters)
        norms = layout.grad_norms()
        if fragment is not None:  # the running means of the other layers are over rounds of theirs
            own = layout.indices(layout.layers_of[fragment])
            norms = torch.full_like(norms, NO_GRADIENT).index_copy(0, own, norms[own])
        replica.estimate.update(norms)
        if isinstance(loss, (int, float, Tensor)):
            reported.add(loss=loss)
    except Exception as error:
        return error
    finally:
        for parameter, gradient in zip(layout.parameters, before, strict=True):
            parameter.grad = gradient
    return None
