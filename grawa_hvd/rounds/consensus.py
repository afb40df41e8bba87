"""The plain mean of the workers, to look at: for evaluation and for checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from grawa_hvd.model.buffers import Buffers
from grawa_hvd.model.holes import Holes
from grawa_hvd.model.layout import Layout
from grawa_hvd.modes import lasting, untold
from grawa_hvd.rounds.beside import EqualAverage
from grawa_hvd.rounds.center import Center
from grawa_hvd.rounds.exchange import Exchange
from grawa_hvd.rounds.pull import Puller
from grawa_hvd.transport.wire import Wire


@contextmanager
def plain_mean(layout: Layout, buffers: Buffers, weight: float, wire: Wire, holes: Holes) -> Iterator[None]:
    """Let parameters and buffers be their mean over the workers inside the block, and bitwise their own after it.

    Args:
        layout: the parameters.
        buffers: those that are averaged too.
        weight: 1/M for a worker that counts, 0 for one that does not.
        wire: how the sum travels; all workers enter.
        holes: what was infinite when training began.
    """
    with lasting():
        tensors = [*layout.parameters, *buffers.tensors]
        own = [tensor.detach().clone() for tensor in tensors]
        with holes.filled():
            _replace_by_mean_(layout, weight, wire)
        if buffers.tensors:
            average = EqualAverage(buffers.tensors, buffers.variances, weight, wire, "buffers")
            average.wait()
            average.replace_()
    try:
        yield
    finally:
        with lasting(), untold(tensors):
            for tensor, saved in zip(tensors, own, strict=True):
                tensor.copy_(saved)


def _replace_by_mean_(layout: Layout, weight: float, wire: Wire) -> None:
    """x ← Σ_m weight[m]·x[m]; a collective."""
    mean = Center(layout)
    exchange = Exchange(layout, mean, wire, in_place=True)
    weights = torch.full((len(layout.parameters),), weight, dtype=torch.float64, device=layout.device)
    for incoming in [exchange.start(number, weights, 0.0) for number in range(len(layout.buckets))]:
        incoming.sum.wait()
        mean.note(layout.buckets[incoming.bucket].members)
    Puller(layout, mean).pull_(1.0)
