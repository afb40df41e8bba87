"""SGD of which some workers make every second step only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class HalfSpeed(torch.optim.SGD):
    """SGD with momentum over stacked parameters [M, ...]: in even steps, slow workers and their momentum stay.

    Args:
        parameters: of all workers; of tensors that have another number of rows, each row is stepped.
        slow: bool, [M].
        settings: of SGD.
    """

    def __init__(self, parameters: list[nn.Parameter], slow: Tensor, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._slow, self._steps, self._stacks = slow, 0, parameters

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """A step of all workers, or of those that are not slow."""
        self._steps += 1
        kept = [value for value in self._values() if self._steps % 2 == 0 and len(value) == len(self._slow)]
        before = [value[self._slow] for value in kept]
        super().step(closure)
        for value, own in zip(kept, before, strict=True):
            value[self._slow] = own

    def _values(self) -> list[Tensor]:
        """Parameters and their momentum."""
        momentum = [state["momentum_buffer"] for state in self.state.values()]
        return [*(parameter.detach() for parameter in self._stacks), *momentum]
