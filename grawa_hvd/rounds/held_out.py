"""Whether all workers share the batch of `HeldOutScores`: where the run starts, its loss must be the same on all."""

from __future__ import annotations

import math

from grawa_hvd.report import Reported
from grawa_hvd.rounds.member import Member
from grawa_hvd.rounds.rows import Progress, Rows
from grawa_hvd.scores import HeldOutScores, losses_differ
from grawa_hvd.transport.base import Transport


def try_out(source: HeldOutScores, member: Member) -> Exception | None:
    """Where a run starts, take the loss for the row of this worker; what is raised is returned, since others wait."""
    if member.steps or member.rounds:
        return None
    try:
        loss = source.trial(member.model.layout.parameters)
    except Exception as error:
        return error
    member.trial = Reported()
    member.trial.add(loss=loss)
    return None


def check_losses(rows: Rows, transport: Transport) -> None:
    """Whether workers that start at the same parameters have the same loss; nothing where they do not start alike.

    Raises:
        ValueError: on every rank, if the losses differ by more than rounding.
    """
    headers = list(rows.header.values())
    at_start = len(rows.arriving) == len(headers) and all(header.progress == Progress() for header in headers)
    if not at_start or len({header.start for header in headers}) > 1:
        return
    losses = {rank: loss for rank, loss in enumerate(rows.losses.tolist()) if math.isfinite(loss)}
    if not losses:
        return
    low, high = min(losses, key=lambda rank: losses[rank]), max(losses, key=lambda rank: losses[rank])
    if losses_differ(losses[low], losses[high]):
        raise ValueError(
            "HeldOutScores needs one batch that all workers share, but with the same parameters its loss is "
            f"{losses[low]:.6g} on {transport.label([low])} and {losses[high]:.6g} on {transport.label([high])}: pass "
            "the same samples on every rank, and switch dropout and random augmentation off, or seed them in the "
            "callable"
        )
