"""One local step: by a fused kernel or by torch, within torch's step hooks, with GradScaler's scale taken off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.__future__ import get_swap_module_params_on_conversion

from grawa_hvd.step import amp
from grawa_hvd.step.capture import refuse_captured_step
from grawa_hvd.step.fused import ALGORITHMS, FusedStep
from grawa_hvd.step.intake import Intake
from grawa_hvd.worker import Worker


class LocalStep:
    """The local steps of one optimizer, and what the worker does around them.

    Args:
        wrapped: the class of the wrapped optimizer.
        worker: counts the step; intake: takes its gradient in.
        fused: whether a kernel may make the step.
        wrapped_scales: whether the wrapped optimizer handles GradScaler's scale itself.
    """

    def __init__(self, wrapped: type[torch.optim.Optimizer], worker: Worker, intake: Intake, fused: bool,
                 wrapped_scales: bool) -> None:  # fmt: skip
        self._wrapped, self._worker, self._intake, self._wrapped_scales = wrapped, worker, intake, wrapped_scales
        self._fused = FusedStep(wrapped) if fused and wrapped in ALGORITHMS else None

    def __call__(self, optimizer: Any, *arguments: Any, **named: Any) -> Any:
        """Make one step, and a round if one is due.

        Args:
            optimizer: the wrapper; arguments, named: what its `step` was given, as a closure.

        Returns:
            What the wrapped class's `step` returns: the closure's result, nearly always.

        Raises:
            RuntimeError: while a CUDA graph is captured, if there are other workers: replays would not count.
        """
        is_active = self._worker.active
        if is_active:
            refuse_captured_step(optimizer.param_groups)
        self._worker.before_step()
        if self._fused is None or not is_active:
            result = self._by_torch(optimizer, functools.partial(self._wrapped.step, optimizer, *arguments, **named))
        else:
            result = _hooked_step(optimizer, *arguments, **named)
        self._worker.count_step()
        if get_swap_module_params_on_conversion():
            self._worker.let_go()
            if self._fused is not None:
                self._fused.let_go()
        return result

    def within_hooks(self, optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
        """The step itself: by the fused kernel, or by torch where that cannot."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        if self._fused is None or not self._intake.step(self._fused, optimizer):
            self._by_torch(optimizer, functools.partial(_without_hooks(self._wrapped.step), optimizer))
        return result

    def _by_torch(self, optimizer: Any, step: Callable[[], Any]) -> Any:
        """A step of the wrapped class, and what the worker does after it."""
        if getattr(optimizer, "found_inf", None) is None:
            result = step()
            self._intake.after_step()
        elif self._wrapped_scales:
            # Without any gradient GradScaler's sum over devices is the integer 0.
            overflow = torch.as_tensor(optimizer.found_inf)
            result = step()
            self._intake.after_step(found_inf=overflow)
        else:
            # GradScaler would have left the step out where gradients overflowed; it counts on every rank.
            scale, found_inf = amp.take_scale(optimizer)
            skipped = amp.overflowed(found_inf)
            result = None
            if not skipped:
                amp.unscale_(optimizer, scale)
                result = step()
            self._intake.after_step(consumed=not skipped)
        return result


@torch.optim.Optimizer.profile_hook_step
def _hooked_step(optimizer: Any, *arguments: Any, **named: Any) -> Any:
    """The step within torch's step hooks, which are given these arguments and no others."""
    return optimizer._local_step.within_hooks(optimizer, *arguments, **named)


def _without_hooks(step: Any) -> Any:
    """A class's `step` without the hooks that torch wraps around it."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step
