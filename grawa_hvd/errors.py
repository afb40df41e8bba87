"""Errors that every rank of a round raises together."""

from __future__ import annotations


class AllWorkersDivergedError(RuntimeError):
    """No worker of a round has finite gradient norms and parameters, so there is nothing to average."""

    @classmethod
    def of(cls, workers: int) -> AllWorkersDivergedError:
        """The error for a round of so many workers."""
        return cls(f"none of the {workers} workers has finite gradient norms and parameters: training has diverged")


class ScoresError(RuntimeError):
    """The user's `scores` or `period` callable raised on another rank, so the round was abandoned on all of them."""


class RanksOutOfStepError(RuntimeError):
    """Ranks came to a round, `round_now()` and `consensus()` at one time: they took different numbers of steps."""
