"""What type checkers know of the optimizer that `DistributedGrawaOptimizer` returns."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from grawa_hvd.report import RoundReport


@runtime_checkable
class SupportsAveraging(Protocol):
    """What the averaging adds to a torch optimizer; `isinstance` tells an optimizer that has it from one that has not.

    Attributes:
        backward_passes_per_step: backward passes whose local sum one step consumes.
    """

    backward_passes_per_step: int

    @property
    def rounds(self) -> int:
        """Completed rounds."""

    @property
    def last_round(self) -> RoundReport | None:
        """What the last round did; None before the first."""

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre, to read; None before the first round."""

    def round_now(self) -> None:
        """A round now, outside the period, and a new cycle after it; a collective."""

    def consensus(self, weights: Literal["equal", "last"] = "equal") -> AbstractContextManager[None]:
        """Inside the block the parameters are the mean of all workers; a collective."""

    def report(
        self,
        loss: float | Tensor | None = None,
        accuracy: float | Tensor | None = None,
        samples: float | Tensor | None = None,
    ) -> None:
        """Tell the policy how this worker is doing."""

    def recenter(self) -> None:
        """Forget the centre, after the model was put elsewhere on every rank."""

    def synchronize(self) -> None:
        """Nothing: gradients are a worker's own."""

    def skip_synchronize(self) -> AbstractContextManager[None]:
        """Goes around `step()` after `synchronize()`, as in Horovod."""

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Set the number of backward passes whose local sum one step consumes."""


class GrawaOptimizer(torch.optim.Optimizer, SupportsAveraging):
    """A torch optimizer with `SupportsAveraging`: the type of what `DistributedGrawaOptimizer` returns.

    For annotations alone: the object is of a subclass of the wrapped optimizer's class, as Horovod's is.
    """
