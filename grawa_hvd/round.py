"""One round, once the workers have met: weigh them, sum, and pull each toward the centre."""

from __future__ import annotations

import torch
from torch import Tensor

from grawa_hvd.averaging import Averaging, Observed
from grawa_hvd.communicator import Communicator
from grawa_hvd.consensus import Center
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.layers import Layout
from grawa_hvd.meeting import Meeting
from grawa_hvd.report import RoundReport
from grawa_hvd.settings import Settings


def run_round(
    meeting: Meeting, layout: Layout, center: Center, communicator: Communicator, settings: Settings
) -> tuple[RoundReport, bool]:
    """Average the workers and pull this one toward the centre (DESIGN §2, "Round"); a collective.

    Returns:
        The report, and whether this worker had diverged: it is the centre then.

    Raises:
        AllWorkersDivergedError: on every rank, if no worker has finite norms and parameters.
        ValueError: on every rank, if the policy returns a wrong shape.
    """
    observed = meeting.observed(len(layout.layer_names))
    scores, weights = _weigh(settings.averaging, observed, meeting.usable)
    rank = communicator.rank
    diverged = not bool(meeting.usable[rank])

    sent = center.average_(weights[rank][layout.layer_of], communicator)
    distances = weights.new_zeros(len(layout.parameters))
    # A diverged worker has nothing worth keeping: it becomes the centre.
    center.pull_(1.0 if diverged else settings.pull, distances)
    distance = _mean_distance(distances, diverged, communicator)
    report = RoundReport(weights, scores, layout.layer_names, observed.losses, sent + meeting.bytes, distance)
    return report, diverged


def _weigh(averaging: Averaging, observed: Observed, usable: Tensor) -> tuple[Tensor, Tensor]:
    if not usable.any():
        raise AllWorkersDivergedError(
            f"none of the {len(usable)} workers has finite gradient norms and parameters: training has diverged"
        )
    scores = averaging.scores(observed).masked_fill(~usable[:, None], torch.nan)
    weights = averaging.weights(scores)
    for name, value in (("scores", scores), ("weights", weights)):
        if value.shape != observed.norms.shape:
            raise ValueError(
                f"{type(averaging).__name__}.{name} must return shape {tuple(observed.norms.shape)} "
                f"[workers, layers], but returned {tuple(value.shape)}"
            )
    return scores, weights


def _mean_distance(distances: Tensor, diverged: bool, communicator: Communicator) -> Tensor:
    """The mean of ‖x − c‖ over workers.

    It is waited for, although nothing depends on it: a rank that calls `hvd.join` while a collective of its own is
    under way hangs, and the others with it.
    """
    own = distances.square().sum().sqrt()
    pair = torch.stack([own, torch.ones_like(own)])
    if diverged:
        pair.zero_()
    communicator.sum_async_(pair, "distance", exact=True).wait()
    return pair[0] / pair[1]
