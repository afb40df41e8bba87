"""One round: exchange what the workers observed, weigh them, sum, and pull each toward the centre."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from grawa_hvd.agreement import Terms, refuse_difference
from grawa_hvd.averaging import Averaging, Observed
from grawa_hvd.communicator import Communicator, MismatchedRowsError
from grawa_hvd.consensus import Center
from grawa_hvd.errors import AllWorkersDivergedError, ScoresError
from grawa_hvd.layers import Layout
from grawa_hvd.report import RoundReport


@dataclass
class Contribution:
    """What one worker brings to a round.

    Attributes:
        norms: its estimates ê, float64 [L]; empty for a policy that does not use gradients.
        reported: mean loss, mean accuracy, samples.
        rounds: rounds that it has completed.
        failure: what its `scores` callable raised.
    """

    norms: Tensor
    reported: list[float]
    rounds: int = 0
    failure: Exception | None = None


@dataclass
class Outcome:
    """A round's result for this worker."""

    report: RoundReport
    rounds: int
    diverged: bool


class Workers:
    """The rows of all workers, read. A row is: present, digest, failed, rounds, finite, the reported three, norms."""

    HEADER = 5
    FIRST_NORM = 8

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self.bytes = rows.numel() * rows.element_size()
        # The one read by the host in a round: M × 5 numbers.
        header = rows[:, : self.HEADER].tolist()
        self.present = [row[0] == 1 for row in header]
        self.digests = {row[1] for row in header if row[0] == 1}
        self.failed = [rank for rank, row in enumerate(header) if row[2] == 1]
        self.rounds = int(max(row[3] for row in header))
        finite = rows[:, self.HEADER - 1 : self.HEADER] == 1
        self.usable = (finite & rows[:, self.FIRST_NORM :].isfinite().all(dim=1, keepdim=True)).squeeze(1)

    @staticmethod
    def row(contribution: Contribution, layout: Layout, description: int) -> Tensor:
        """This worker's row."""
        head = [1, description, contribution.failure is not None, contribution.rounds]
        finite = layout.table.norms().isfinite().all().double()[None]
        return torch.cat([layout.numbers(head), finite, layout.numbers(contribution.reported), contribution.norms])

    def observed(self, layers: int) -> Observed:
        """The policy's input; NaN in the rows of workers that are left out."""
        norms = self._rows[:, self.FIRST_NORM :]
        if norms.size(1) == 0:
            norms = norms.new_zeros(norms.size(0), layers)
        norms = norms.masked_fill(~self.usable[:, None], torch.nan)
        return Observed(norms, *self._rows[:, self.HEADER : self.FIRST_NORM].unbind(dim=1))


def run_round(
    contribution: Contribution, layout: Layout, center: Center, communicator: Communicator, terms: Terms, step: int
) -> Outcome:
    """Average the workers and pull this one toward the centre (DESIGN §2, "Round"); a collective.

    Raises:
        AllWorkersDivergedError: on every rank, if no worker has finite norms and parameters.
        ScoresError: if the `scores` callable raised on another rank; where it raised, its own exception.
        ValueError: on every rank, if layouts or settings have come to differ.
    """
    start = time.perf_counter()
    settings = terms.settings
    workers = _exchange(contribution, layout, communicator, terms)
    observed = workers.observed(len(layout.layer_names))
    scores, weights = _weigh(settings.averaging, observed, workers.usable)
    rank = communicator.rank
    diverged = not bool(workers.usable[rank])

    sent = center.average_(weights[rank][layout.layer_of], communicator)
    distances = weights.new_zeros(len(layout.parameters))
    # A diverged worker has nothing worth keeping: it becomes the centre.
    center.pull_(1.0 if diverged else settings.pull, distances)
    distance = _mean_distance(distances, diverged, communicator)
    report = RoundReport(
        step, weights, scores, layout.layer_names, observed.losses, time.perf_counter() - start,
        sent + workers.bytes, distance,
    )  # fmt: skip
    return Outcome(report, workers.rounds + 1, diverged)


def _exchange(contribution: Contribution, layout: Layout, communicator: Communicator, terms: Terms) -> Workers:
    try:
        rows = communicator.gather(Workers.row(contribution, layout, terms.digest), "scores")
    except MismatchedRowsError:
        refuse_difference(terms, communicator)
    workers = Workers(rows)
    if len(workers.digests) > 1:
        refuse_difference(terms, communicator)
    if contribution.failure is not None:
        raise contribution.failure
    if workers.failed:
        raise ScoresError(f"the scores callable raised on ranks {workers.failed}; the round was abandoned on all")
    return workers


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
