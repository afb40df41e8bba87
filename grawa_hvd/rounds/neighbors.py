"""The exchange of a decentralized round: each worker sends its parameters to its neighbors, and mixes in theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from grawa_hvd.model.flat import wide_type
from grawa_hvd.model.layout import Bucket, Layout
from grawa_hvd.rounds.center import Center
from grawa_hvd.rounds.exchange import Incoming, Shares
from grawa_hvd.transfer import read
from grawa_hvd.transport.base import Gathering, Links, Transport


class Neighbors:
    """Mixes with neighbors: c[m] ← Σ_j W[m,j]·x[j], each worker's own centre.

    While a round is under way it takes the memory of the worker's own bucket and of those of its neighbors.

    Args:
        layout: the parameters.
        center: where the mix arrives.
        transport: the workers.
    """

    def __init__(self, layout: Layout, center: Center, transport: Transport) -> None:
        self._layout, self._center, self._transport = layout, center, transport
        self._layer_of = read(layout.layer_of)  # once: in a round the host must not wait for a device

    def sender(self, shares: Shares) -> Callable[[int], Incoming]:
        """What starts the exchange of one bucket, given its number; each call is a collective of those present."""
        present = shares.present
        absent = [worker for worker in range(len(shares.weights)) if worker not in present]
        counts = (shares.weights != 0).any(dim=2).fill_diagonal_(False)
        counts[absent] = counts[:, absent] = False
        links = Links([row.nonzero().flatten().tolist() for row in counts], complete=not absent)
        own, sources = shares.weights[shares.own], links.sources[shares.own]
        if shares.own in absent:  # it follows the others, and stays what it is
            own = torch.zeros_like(own).index_fill(0, torch.tensor(shares.own, device="cpu"), 1.0)
        weights = own[[shares.own, *sources]].expand(-1, len(self._layout.layer_names))
        return partial(self.start, weights[:, self._layer_of], links)

    def start(self, weights: Tensor, links: Links, number: int) -> Incoming:
        """Start the exchange of one bucket.

        Args:
            weights: of this worker itself and of those that it receives from, [1 + sources, P], in the host's memory.
            links: who receives from whom.
            number: which bucket.
        """
        bucket, center = self._layout.buckets[number], self._center.buffers[number]
        own = torch.empty_like(center)
        bucket.copy_to(own)
        gathering = self._transport.gather_neighbors(own, links, bucket.name)
        return Incoming(number, _Mixed(bucket, center, own, weights[:, bucket.members], gathering), None)

    def forget(self) -> None:
        """Nothing is kept from earlier rounds."""

    def state(self) -> dict[int, Tensor]:
        """Nothing."""
        return {}

    def load(self, state: dict[int, Tensor]) -> None:
        """Nothing is kept."""


class _Mixed:
    """One bucket's mix on its way.

    Args:
        bucket: the parameters; center: where the mix arrives; own: this worker's, packed.
        weights: [1 + sources, parameters of the bucket].
        gathering: those of the neighbors.
    """

    def __init__(self, bucket: Bucket, center: Tensor, own: Tensor, weights: Tensor, gathering: Gathering) -> None:
        self._bucket, self._center, self._own = bucket, center, own
        self._weights, self._gathering = weights, gathering

    @property
    def bytes(self) -> int:
        """What this worker handed to the transport."""
        return self._gathering.bytes

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._gathering.done()

    def wait(self) -> None:
        """Let the centre be the mix."""
        received = self._gathering.wait()
        wide = wide_type(self._own.dtype)
        mixed = torch.zeros_like(self._own, dtype=wide)
        for flat, weights in zip([self._own, *received], self._weights, strict=True):
            if weights.any():  # 0·NaN of a worker that has diverged must not leak
                parts = list(self._bucket.split(flat.to(wide)))
                torch._foreach_mul_(parts, weights.tolist())
                torch._foreach_add_(list(self._bucket.split(mixed)), parts)
        self._center.copy_(mixed)
