"""torch's own checkpoint tools, `get_optimizer_state_dict` and its like, and what they do to an optimizer.

They give a fresh optimizer state by a step of their own, on the rank that calls them, and keep of a state_dict what
stands in "state" and in "param_groups".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from grawa_hvd.caller import is_called_by

MODULE = "torch.distributed.checkpoint.state_dict"


def make_state(optimizer: Any) -> bool:
    """Whether they make the step that is being made, with lr 0 and gradients of 0: it counts on no rank."""
    if optimizer.state or not all(_is_zero(group.get("lr", 0.0)) for group in optimizer.param_groups):
        return False
    return is_called_by("_init_optim_state", MODULE)


def take_state() -> bool:
    """Whether they have called `state_dict`."""
    return is_called_by("_get_optim_state_dict", MODULE)


def _is_zero(lr: float | Tensor) -> bool:
    return bool(lr == 0) if not isinstance(lr, Tensor) or lr.is_cpu else False
