"""One round, once the workers have met: weigh them, sum, and pull each toward the centre."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from grawa_hvd.averaging import Averaging, Observed
from grawa_hvd.caller import stacklevel
from grawa_hvd.communicator import Communicator
from grawa_hvd.companion import Companion
from grawa_hvd.consensus import Center
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.layers import Layout
from grawa_hvd.meeting import Meeting
from grawa_hvd.overlap import Snapshot
from grawa_hvd.report import Phases, RoundReport
from grawa_hvd.transfer import send


class Round:
    """A round under way (DESIGN §2, "Round"): every bucket is packed and sent here, and received in `finish`.

    A bucket is packed while those before it travel, and blended while those after it do.

    Args:
        meeting: the rows of all workers.
        members: the workers that average with each other: their ranks among those of the meeting.
        layout, center: the model, and what is moved to the average.
        communicator: the members.
        averaging: the policy.
        fragment: the part of the model; None for all of it.
        within_host: whether the members are those of one host.
        overlapped: training goes on before `finish` is called.
        companion: what has come with the rows already, if anything.
        phases: the round's clock.

    Raises:
        AllWorkersDivergedError: on every rank, if no member has finite norms and parameters.
        ValueError: on every rank, if the policy returns a wrong shape or a negative score.
    """

    def __init__(
        self,
        meeting: Meeting,
        members: list[int],
        layout: Layout,
        center: Center,
        communicator: Communicator,
        averaging: Averaging,
        phases: Phases,
        fragment: int | None = None,
        within_host: bool = False,
        overlapped: bool = False,
        companion: Companion | None = None,
    ) -> None:
        self._meeting, self._layout, self._center, self._phases = meeting, layout, center, phases
        self.within_host = within_host
        with phases("scores"):
            observed = meeting.observed(len(layout.layer_names)).of(members)
            usable = meeting.usable[members]
            scores, weights = _weigh(averaging, observed, usable)
            self.diverged = not bool(usable[communicator.rank])
        with phases("blend"):
            received = None if companion is None else companion.averages(observed, usable)
        self._snapshot: Snapshot | None = None
        self._underway = received or []
        if received is None:
            own = send(weights[communicator.rank], layout.device)[layout.layer_of]
            self._start(own, communicator, fragment, overlapped)
        report = RoundReport(
            weights,
            scores,
            layout.layer_names,
            meeting.losses[members],
            0,
            meeting.distances,
            phases.seconds,
            within_host,
        )
        self._report = report if fragment is None else _of_layers(report, layout.layers_of[fragment])

    def _start(self, own: Tensor, communicator: Communicator, fragment: int | None, overlapped: bool) -> None:
        """Pack and send this worker's part of every bucket."""
        layout, center, phases = self._layout, self._center, self._phases
        buckets = [n for n, bucket in enumerate(layout.buckets) if fragment in (None, bucket.fragment)]
        with phases("pack"):
            self._snapshot = Snapshot(layout, buckets) if overlapped else None
        try:
            with phases("pack"):
                self._underway = [center.start(number, own, communicator, self._meeting.reach) for number in buckets]
        except BaseException:
            center.forget()
            raise
        if overlapped:
            communicator.leave_under_way([underway.sum for underway in self._underway])

    def finish(self, pull: float) -> tuple[RoundReport, Tensor]:
        """Receive the sums and pull this worker toward the centre: wholly if it had diverged.

        Returns:
            The report, and this worker's ‖x − c‖ before the pull, [1]; NaN if it had diverged.
        """
        distances = torch.zeros(len(self._layout.parameters), dtype=torch.float64, device=self._layout.device)
        sent = self._meeting.bytes
        try:
            for underway in self._underway:
                with self._phases("communicate"):
                    underway.sum.wait()
                with self._phases("blend"):
                    self._center.move_(underway)
                    self._pull(underway.bucket, pull, distances)
                sent += underway.sum.bytes
        except BaseException:
            self._center.forget()
            raise
        distance = distances.square().sum().sqrt()[None]
        if self.diverged:
            distance.fill_(math.nan)
        return replace(self._report, bytes=sent, phases=dict(self._phases.seconds)), distance

    def receive(self) -> None:
        """Wait for the sums and do nothing with them."""
        for underway in self._underway:
            underway.sum.wait()

    def _pull(self, bucket: int, pull: float, distances: Tensor) -> None:
        if self.diverged:  # it has nothing worth keeping
            self._center.pull_bucket_(bucket, 1.0, distances)
        elif self._snapshot is None:
            self._center.pull_bucket_(bucket, pull, distances)
        else:
            first = self._layout.buckets[bucket].indices[:1]
            distances[first] = self._snapshot.pull_bucket_(self._center, bucket, pull)


def _weigh(averaging: Averaging, observed: Observed, usable: Tensor) -> tuple[Tensor, Tensor]:
    if not usable.any():
        raise AllWorkersDivergedError.of(len(usable))
    name, shape = type(averaging).__name__, observed.norms.shape
    scores = _checked(averaging.scores(observed), f"{name}.scores", shape).masked_fill(~usable[:, None], torch.nan)
    if scores.isfinite().all(dim=1).any():
        return scores, _checked(averaging.weights(scores), f"{name}.weights", shape)
    warnings.warn(
        f"{name} has a score of none of the {len(usable)} workers, so all weigh alike: has each of them called "
        "optimizer.report() since the last round?",
        stacklevel=stacklevel(),
    )
    equal = usable.to(scores.dtype) / usable.sum()
    return scores, equal[:, None].expand(shape)


def _checked(value: Tensor, name: str, shape: torch.Size) -> Tensor:
    if value.shape != shape:
        raise ValueError(
            f"{name} must return shape {tuple(shape)} [workers, layers], but returned {tuple(value.shape)}"
        )
    return value


def _of_layers(report: RoundReport, layers: list[int]) -> RoundReport:
    names = [report.layer_names[layer] for layer in layers]
    return replace(report, weights=report.weights[:, layers], scores=report.scores[:, layers], layer_names=names)
