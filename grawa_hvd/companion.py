"""One latency a round for small models: weighted parameters travel beside the rows, before the weights are known.

Where a policy has written `factors`, a worker's weight is w[m] / Σ_m w[m] with a w that it knows by itself, and the
average needs no second exchange: c = Σ_m w[m]·x[m] / Σ_m w[m]. Each worker sends w·x in one message with its row, and
divides when the rows have told all w. So every meeting has a companion, whatever ranks come for; what they need not,
they leave unused.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.averaging import Averaging, Observed
from grawa_hvd.consensus import Received, Underway
from grawa_hvd.layers import Layout
from grawa_hvd.transfer import send

# Above this, sending the model in vain at an arrival costs more than the latency that is saved.
LARGEST = 4 * 2**20
# Factors within these bounds neither over- nor underflow in a product with any parameter that training has.
FACTORS = 2.0**-40, 2.0**40


def is_fit_for_companion(layout: Layout, averaging: Averaging) -> bool:
    """Whether a model is small enough, of one type that travels exactly, and averaged by a policy with `factors`."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in layout.parameters)
    kinds = {(parameter.dtype, parameter.device) for parameter in layout.parameters}
    exact = len(kinds) == 1 and layout.parameters[0].dtype in (torch.float32, torch.float64)
    if not exact or not 0 < size <= LARGEST:
        return False
    norms, unknown = layout.numbers([1.0] * len(layout.layer_names))[None], layout.numbers([math.nan])
    return averaging.factors(Observed(norms, unknown, unknown, unknown)) is not None


class Companion:
    """The sum Σ_m w[m]·x[m] that goes with every meeting.

    Args:
        layout: the model.
        averaging: a policy that has `factors`.
        age: greater than that of any companion that this rank had before.
    """

    def __init__(self, layout: Layout, averaging: Averaging, age: int = 0) -> None:
        self._layout, self._averaging = layout, averaging
        self.dtype = layout.parameters[0].dtype
        self._sizes = [bucket.table.numel for bucket in layout.buckets]
        self._wire = torch.empty(0, dtype=self.dtype, device=layout.device)
        self._parts: list[Tensor] = []
        self._tables: list[ops.LayerTable] = []
        # Layers that had no gradient on any worker at the last round: there w = 1 stands for "nothing is known".
        self._dead = torch.zeros(len(layout.layer_names), dtype=torch.bool)
        # Grows with all that a rank comes to know or forgets, and never shrinks: a rank that was away while others went
        # on is younger than they are, and ranks of the same age know the same.
        self.age = age

    def packed(self, factors: Tensor, room: int) -> Tensor:
        """The message: w·x of this worker, and room for its row.

        Args:
            factors: w, one a layer, [L].
            room: how many elements to leave at the end.
        """
        if self._wire.numel() != sum(self._sizes) + room:
            self._wire = self._wire.new_zeros(sum(self._sizes) + room)
            *self._parts, _ = torch.split(self._wire, [*self._sizes, room])
            views = [bucket.views(part) for bucket, part in zip(self._layout.buckets, self._parts, strict=True)]
            self._tables = [ops.LayerTable(tensors) for tensors in views]
        own = factors[self._layout.layer_of]
        for bucket, part in zip(self._layout.buckets, self._parts, strict=True):
            bucket.table.pack(own[bucket.indices], part)
        return self._wire

    def forget(self, oldest: int) -> None:
        """Know nothing of earlier rounds, as a rank that arrives; `oldest` is the greatest age of those who meet."""
        self._dead.zero_()
        self.age = oldest + 1

    def factors(self, observed: Observed, usable: Tensor) -> Tensor:
        """w of workers by their rows, [M, L]; 0 for one that is not usable, [M], or whose w is NaN."""
        said, counts = self._said(observed, usable)
        return self._known(said, counts, send(self._dead, said.device))

    def _said(self, observed: Observed, usable: Tensor) -> tuple[Tensor, Tensor]:
        """w as the policy says, [M, L], and whose count, bool, [M, 1]; 0 in the rows of the others."""
        factors = self._averaging.factors(observed)
        assert factors is not None
        counts = (usable & ~factors.isnan().any(dim=1))[:, None]
        return torch.where(counts, factors.double(), 0.0), counts

    def _known(self, said: Tensor, counts: Tensor, dead: Tensor) -> Tensor:
        rounded = said.to(self.dtype).double()  # as the kernels round it
        return torch.where(dead & (said == 0) & counts, 1.0, rounded)

    def own_factors(self, norms: Tensor, reported: Tensor, finite: Tensor) -> Tensor:
        """w of a worker, [L], by what its row says, computed where that is.

        Args:
            norms: [L], or none at all for a policy that does not use gradients.
            reported: mean loss, mean accuracy, samples, [3].
            finite: whether its parameters are, bool, [1].
        """
        usable = finite & norms.isfinite().all()
        norms = norms if len(norms) else norms.new_zeros(len(self._layout.layer_names))
        return self.factors(Observed(norms[None], *reported[:, None].unbind()), usable)[0]

    def averages(self, observed: Observed, usable: Tensor) -> list[Underway] | None:
        """What has been received, divided; None if it cannot be used and the workers must sum once more.

        Args:
            observed: of all workers; usable: which of them count, [M]; both in the host's memory.
        """
        said, counts = self._said(observed, usable)
        factors = self._known(said, counts, self._dead)
        total = factors.sum(dim=0)
        least, most = torch.where(factors == 0, 1.0, factors).aminmax()
        dead = (said == 0).all(dim=0)
        # A layer that one worker has learned in since: the others' w = 1 says nothing, and is in the sum.
        revived = self._dead & ~dead & ((said == 0) & counts).any(dim=0)
        fit = (total > 0).all() & (least >= FACTORS[0]) & (most <= FACTORS[1]) & ~revived.any()
        self.age += 1
        self._dead = dead
        return self.divided(total) if fit else None

    def divided(self, total: Tensor) -> list[Underway]:
        """What has been received over Σ_m w[m], [L], in the host's memory: the centre of each bucket."""
        inverse = send(1.0 / total, self._layout.device)[self._layout.layer_of]
        return [
            Underway(number, Received(table, inverse[bucket.indices]))
            for number, (bucket, table) in enumerate(zip(self._layout.buckets, self._tables, strict=True))
        ]
