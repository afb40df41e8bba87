"""torch's own checkpoint tools, `get_optimizer_state_dict` and its like, and what they do to an optimizer.

They give a fresh optimizer state by a step of their own, on the rank that calls them, and keep of a state_dict what
stands in "state" and in "param_groups".
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from grawa_hvd.caller import is_called_by

MODULE = "torch.distributed.checkpoint.state_dict"
STATE_KEY = "grawa"


def make_state(optimizer: Any) -> bool:
    """Whether they make the step that is being made, with lr 0 and gradients of 0: it counts on no rank."""
    if optimizer.state or not all(_is_zero(group.get("lr", 0.0)) for group in optimizer.param_groups):
        return False
    return is_called_by("_init_optim_state", MODULE)


def joined(state: dict[str, Any], averaging: dict[str, Any]) -> dict[str, Any]:
    """The wrapped optimizer's state_dict with what the averaging keeps: under a key of its own, or where they ask."""
    if is_called_by("_get_optim_state_dict", MODULE):
        first, *others = state["param_groups"]
        return {**state, "param_groups": [{**first, STATE_KEY: averaging}, *others]}
    return {**state, STATE_KEY: averaging}


def split(state_dict: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The two parts of what `joined` returned; None where the averaging has none, as of a plain optimizer."""
    state = {key: value for key, value in state_dict.items() if key != STATE_KEY}
    averaging = [state_dict[STATE_KEY]] if STATE_KEY in state_dict else []
    if "param_groups" in state:  # a class with a state_dict of its own may have none
        state["param_groups"] = [{**group} for group in state["param_groups"]]
        averaging += [group.pop(STATE_KEY) for group in state["param_groups"] if STATE_KEY in group]
    return state, next(iter(averaging), None)


def _is_zero(lr: float | Tensor) -> bool:
    return bool(lr == 0) if not isinstance(lr, Tensor) or lr.is_cpu else False
