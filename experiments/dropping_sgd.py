"""SGD as the GRAWA paper trains with it: Nesterov momentum 0.9, and a learning rate that drops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

MOMENTUM = 0.9


class DroppingSGD(torch.optim.SGD):
    """SGD with Nesterov momentum whose learning rate is a tenth after half of the steps, a hundredth after 3/4.

    Without drops a mean of workers has an advantage that a smaller step would give gradient averaging too.

    Args:
        parameters: as torch's.
        lr: at first.
        steps: of the whole run.

    Attributes:
        last: copies of the parameters after the last step: before a round that may follow it. Empty until then.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, steps: int) -> None:
        super().__init__(parameters, lr=lr, momentum=MOMENTUM, nesterov=True)
        self._steps, self._drops, self._taken = steps, {steps // 2, 3 * steps // 4}, 0
        self.last: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step, and the drop after it if one is due."""
        super().step(closure)
        self._taken += 1
        if self._taken in self._drops:
            for group in self.param_groups:
                group["lr"] /= 10
        if self._taken == self._steps:
            self.last = [parameter.detach().clone() for group in self.param_groups for parameter in group["params"]]
