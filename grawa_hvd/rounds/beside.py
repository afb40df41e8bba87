"""What takes part in a round beside the parameters, with equal weights: buffers, and the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grawa_hvd.modes import untold
from grawa_hvd.transport.wire import Wire


class EqualAverage:
    """The mean of some tensors over the workers, on its way.

    Of a running variance the pooled one is meant, within and between the workers: Σ_m (σ²[m] + μ[m]²)/M − mean(μ)².

    Args:
        tensors: all on one device.
        variances: the number of each running variance → that of its mean.
        weight: 1/M for a worker that counts, 0 for one that does not.
        wire: how they travel; a collective.
        name: of the sum.
        replaces: whether the tensors are to become their means.
    """

    def __init__(
        self, tensors: Sequence[Tensor], variances: Mapping[int, int], weight: float, wire: Wire, name: str,
        replaces: bool = True,
    ) -> None:  # fmt: skip
        self._tensors, self._variances, self._replaces = list(tensors), variances, replaces
        wide = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
        sent = [tensor.detach().reshape(-1).to(wide) for tensor in tensors]
        for variance, mean in variances.items():
            sent[variance] = sent[variance] + sent[mean].square()
        self._flat = torch.cat(sent)
        # Zeros exactly, also over NaN.
        self._flat = self._flat.mul_(weight) if weight else self._flat.zero_()
        self._sum = wire.sum_(self._flat, name, exact=True)
        self.bytes = self._sum.bytes

    def wait(self) -> None:
        """Wait for the sum."""
        self._sum.wait()

    def _means(self) -> list[Tensor]:
        means = [
            part.view(tensor.shape)
            for part, tensor in zip(
                torch.split(self._flat, [t.numel() for t in self._tensors]), self._tensors, strict=True
            )
        ]
        for variance, mean in self._variances.items():
            means[variance] = (means[variance] - means[mean].square()).clamp_(min=0)
        return means

    def replace_(self) -> None:
        """Let the tensors be their means, once the sum has come."""
        if not self._replaces:
            return
        with torch.no_grad(), untold(self._tensors):
            for tensor, mean in zip(self._tensors, self._means(), strict=True):
                tensor.copy_(mean)
