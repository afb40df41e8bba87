"""How often the models of a stack are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.stacked import Groups, Stack
from grawa_hvd.simulation.data import Pair


@dataclass(frozen=True)
class Images:
    """Images and labels for each group, [groups, n, ...] and [groups, n]."""

    inputs: Tensor
    labels: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Images:
        """Of as many images for each group."""
        return cls(*(torch.stack(parts) for parts in zip(*pairs, strict=True)))

    def of_means(self, groups: Groups) -> Tensor:
        """The accuracy of each group's mean, from 0 to 1; 0 where a worker has diverged. [groups]."""
        return self._right(groups, groups.means(), 1)

    def of_workers(self, groups: Groups, workers: Stack) -> Tensor:
        """The mean accuracy of each group's workers, likewise."""
        size = groups.plan.workers
        return self._right(groups, workers, size).unflatten(0, (-1, size)).mean(dim=1)

    def _right(self, groups: Groups, stack: Stack, copies: int) -> Tensor:
        inputs, labels = (part.repeat_interleave(copies, dim=0) for part in (self.inputs, self.labels))
        outputs = groups.outputs(stack, inputs)
        right = (outputs.argmax(dim=2) == labels).double().mean(dim=1)
        return torch.where(outputs.flatten(1).isfinite().all(dim=1), right, 0.0)
