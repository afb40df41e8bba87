"""Rounds in TensorBoard: pass `on_round=grawa_hvd.tensorboard.RoundWriter(writer)`."""

from __future__ import annotations

import math
from typing import Any

from grawa_hvd.report import RoundReport


class RoundWriter:
    """Writes each round's report as scalars under "grawa/", at the worker's local step.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar` and `add_histogram`; None
            for ranks that write nothing.
    """

    def __init__(self, writer: Any | None) -> None:
        self._writer = writer

    def __call__(self, report: RoundReport) -> None:
        """Write one report; rounds within a host go under "grawa/host/"."""
        if self._writer is None:
            return
        prefix = "grawa/host" if report.within_host else "grawa"
        values = {"seconds": report.seconds, "bytes": report.bytes, "distance": report.distance}
        values.update({f"seconds/{phase}": seconds for phase, seconds in report.phases.items()})
        # A worker's mean weight over layers: 1/M each where weights do not matter.
        values.update({f"weight/{rank}": float(weight) for rank, weight in enumerate(report.weights.mean(dim=1))})
        for name, value in values.items():
            if not math.isnan(value):
                self._writer.add_scalar(f"{prefix}/{name}", value, report.step)
        self._writer.add_histogram(f"{prefix}/weights", report.weights.cpu(), report.step)
