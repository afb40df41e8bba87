"""Steps that do not count, and so bring no round: of the plain optimizer, or by other methods than `step`.

Workers would train apart in silence. It is told once.
"""

from __future__ import annotations

import functools
import inspect
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from grawa_hvd.caller import stacklevel

# `hvd.broadcast_optimizer_state` and torch's checkpoint tools make one step of a fresh optimizer, to give it state.
PLAIN_STEPS = 2
# A pair of calls an iteration, as of SAM's first_step and second_step. Others move parameters now and then, between
# steps, as a schedule-free optimizer's train() and eval().
MOVES = 4


def warn_of_plain_steps(plain: torch.optim.Optimizer, wrapper: Any) -> None:
    """Tell once when the optimizer from before the wrapping is stepped, while the wrapper is there.

    Args:
        plain: the optimizer that was wrapped; its step hooks are the wrapper's too.
        wrapper: what it has been wrapped in.
    """
    found, plain_steps = weakref.ref(wrapper), 0

    def after_step(stepped: Any, *_: Any) -> None:
        nonlocal plain_steps
        if hasattr(stepped, "_worker"):
            return
        owner = found()
        if owner is None or not owner._worker.active:
            return
        plain_steps += 1
        if plain_steps == PLAIN_STEPS:
            warnings.warn(
                f"the plain {type(stepped).__name__} from before the wrapping is stepped: such steps do not count, no "
                "round comes, and the workers train apart. Call step() of what DistributedGrawaOptimizer returned",
                stacklevel=stacklevel(),
            )

    if hasattr(plain, "_optimizer_step_post_hooks"):  # some classes never call Optimizer.__init__, and have no hooks
        plain.register_step_post_hook(after_step)


def watched_methods(wrapped: type[torch.optim.Optimizer]) -> dict[str, Callable[..., Any]]:
    """The wrapped class's own methods, which also notice that they have moved parameters."""
    names = [name for name in dir(wrapped) if not name.startswith("_") and not hasattr(torch.optim.Optimizer, name)]
    members = {name: inspect.getattr_static(wrapped, name) for name in names}
    return {name: _watched(member) for name, member in members.items() if inspect.isfunction(member)}


def _watched(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(optimizer: Any, *arguments: Any, **named: Any) -> Any:
        if optimizer.__dict__.get("_is_within", True):
            return method(optimizer, *arguments, **named)
        before = _versions(optimizer)
        optimizer._is_within = True
        try:
            return method(optimizer, *arguments, **named)
        finally:
            optimizer._is_within = False
            if _versions(optimizer) != before:
                _note_move(optimizer, method.__name__)

    return call


def _versions(optimizer: Any) -> list[int]:
    return [parameter._version for group in optimizer.param_groups for parameter in group["params"]]


def _note_move(optimizer: Any, name: str) -> None:
    optimizer._moves += 1
    if optimizer._moves == MOVES and optimizer._worker.active:
        warnings.warn(
            f"{name}() and its like have moved the parameters {MOVES} times without a call of optimizer.step(). That "
            "alone counts, so no round comes and the workers train apart. Train by optimizer.step(closure), or let "
            "step() make the last of these moves",
            stacklevel=stacklevel(),
        )
