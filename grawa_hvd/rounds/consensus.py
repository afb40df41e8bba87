"""The mean of the workers, to look at: for evaluation and for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.model.buffers import Buffers
from grawa_hvd.model.layout import Layout
from grawa_hvd.modes import lasting, untold
from grawa_hvd.rounds.beside import EqualAverage
from grawa_hvd.rounds.center import Center
from grawa_hvd.rounds.exchange import Exchange
from grawa_hvd.rounds.member import Member
from grawa_hvd.rounds.pull import Puller
from grawa_hvd.rounds.rows import Reason, Rows
from grawa_hvd.transfer import send
from grawa_hvd.transport.wire import Wire


def shares(weights: Tensor | None, size: int, finite: Sequence[int]) -> Tensor:
    """How much each worker counts in the mean, float64, [M, L]; columns sum to 1.

    Args:
        weights: of the workers, [M, L]; None for equal ones of one layer.
        size: M.
        finite: the workers that have not diverged, one at least. The others count for nothing, and where all weight
            was theirs, these count alike.
    """
    counted = torch.zeros(size, 1, dtype=torch.float64, device="cpu")
    counted[list(finite)] = 1.0
    left = counted if weights is None else counted * weights
    total = left.sum(dim=0)
    return torch.where(total > 0, left / total, counted / counted.sum())


@contextmanager
def mean_of_workers(member: Member, buffers: Buffers, rows: Rows) -> Iterator[None]:
    """Let parameters and buffers be their mean over the workers inside the block, and bitwise their own after it.

    Args:
        member: one of the workers, all of whom enter.
        buffers: those that are averaged too, with equal weights.
        rows: of all workers; they say by which weights the mean of the parameters is asked for.

    Raises:
        AllWorkersDivergedError: on every rank, if no worker has finite parameters.
    """
    if not rows.finite:
        raise AllWorkersDivergedError(f"none of the {len(rows.header)} workers has finite parameters")
    weights = member.weights if rows.came_for(Reason.LAST_CONSENSUS) else None
    layout, wire, rank = member.model.layout, member.wire, member.wire.transport.rank
    equal, own = shares(None, rows.size, rows.finite)[rank], shares(weights, rows.size, rows.finite)[rank]
    with lasting():
        own_buffers = buffers.tensors
        tensors = [*layout.parameters, *own_buffers]
        saved = [tensor.detach().clone() for tensor in tensors]
        with member.model.holes.filled():
            _replace_by_mean_(layout, own.expand(len(layout.layer_names)), wire)
        if own_buffers:
            average = EqualAverage(own_buffers, buffers.variances, equal.item(), wire, "buffers")
            average.wait()
            average.replace_()
    try:
        yield
    finally:
        with lasting(), untold(tensors):
            for tensor, before in zip(tensors, saved, strict=True):
                tensor.copy_(before)


def _replace_by_mean_(layout: Layout, own: Tensor, wire: Wire) -> None:
    """x[l] ← Σ_m own[m, l]·x[m, l]; a collective.

    Args:
        own: what this worker counts, one number a layer, in the host's memory, [L].
    """
    mean = Center(layout)
    exchange = Exchange(layout, mean, wire, in_place=True)
    weights = send(own, layout.device)[layout.layer_of]
    for incoming in [exchange.start(number, weights, 0.0) for number in range(len(layout.buckets))]:
        incoming.sum.wait()
        mean.note(layout.buckets[incoming.bucket].members)
    Puller(layout, mean).pull_(1.0)
