"""The wrapped optimizer as a worker sees it: its parameters by name, and its state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from grawa_hvd.caller import stacklevel
from grawa_hvd.model.names import OwnedNames
from grawa_hvd.step.elsewhere import Elsewhere


class Owned:
    """What a worker asks of the wrapper.

    Args:
        optimizer: the wrapper; names: parameter → name, as far as names were given.
    """

    def __init__(self, optimizer: Any, names: dict[Tensor, str]) -> None:
        self._optimizer, self._elsewhere = optimizer, Elsewhere(optimizer)
        owned = OwnedNames(optimizer, names)
        self.names, self.reorder = owned.current, owned.reorder

    def state(self) -> Mapping[Tensor, Mapping[str, Any]]:
        """The state by parameter."""
        state: Mapping[Tensor, Mapping[str, Any]] = self._optimizer.state
        return state

    def reset_state(self) -> None:
        """State as new; some optimizers (Adagrad) make it when they are constructed, most at their first step."""
        optimizer = self._optimizer
        if not self._elsewhere.renew():
            warnings.warn(
                f"this worker diverged and has become the centre, but {type(optimizer).__name__} keeps NaN or Inf "
                "elsewhere than in its `state`, where it cannot be made anew: it may diverge again at once",
                stacklevel=stacklevel(),
            )
        no_arguments: dict[str, Any] = {}
        for arguments in (optimizer.defaults, no_arguments):
            # Constructors may not take what their defaults hold, or want more. An error on this rank alone would
            # leave the others waiting, and nearly every optimizer's next step fills state that is empty.
            with suppress(Exception):
                fresh = optimizer._wrapped([{**group} for group in optimizer.param_groups], **arguments)
                optimizer.state.update(fresh.state)
                return
