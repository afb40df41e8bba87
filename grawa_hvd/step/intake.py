"""What a local step is to the averaging: its gradient enters the norm estimates, and the parameters near the centre."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grawa_hvd.step.fused import FusedStep
from grawa_hvd.worker import Worker


class Intake:
    """Takes in the local steps of one worker, once it has met the others.

    Args:
        worker: the worker.
        observes: whether norms of local steps are wanted.
    """

    def __init__(self, worker: Worker, observes: bool) -> None:
        self._worker, self._member, self._observes = worker, worker.member, observes

    @torch.no_grad()
    def step(self, fused: FusedStep, optimizer: Any) -> bool:
        """Let a kernel make the local step, take in its gradient and apply proximity.

        Returns:
            False, with nothing changed, if torch must make the step.
        """
        if not self._worker.arrived:
            return False
        model = self._member.model
        pull = self._member.proximity if model.rooms.center.known else 0.0
        made, norms = fused.step(optimizer, self._member.wrapped.names(), model.rooms, pull, self._observes)
        if model.holes:
            model.holes.after_pull()
        if norms is not None:
            model.estimate.update(norms)
        return made

    @torch.no_grad()
    def after_step(self, consumed: bool = True, found_inf: Tensor | None = None) -> None:
        """Take in the gradient of a local step that torch made, and apply proximity.

        Args:
            consumed: False if the step left the parameters alone, because its gradients had overflowed.
            found_inf: the same where only the device knows: positive then.
        """
        if not self._worker.arrived:
            return
        try:
            self._take_in(consumed, found_inf)
        except RuntimeError:
            if self._member.is_laid_out:
                raise
            self._worker.refresh()  # a parameter has changed its shape since the last step
            self._take_in(consumed, found_inf)

    def _take_in(self, consumed: bool, found_inf: Tensor | None) -> None:
        model = self._member.model
        if self._observes and consumed:
            norms = model.layout.grad_norms()
            if found_inf is not None:
                norms = torch.where(found_inf > 0, -1.0, norms)
            model.estimate.update(norms)
        if self._member.proximity and model.rooms.center.known:
            model.rooms.puller.pull_(self._member.proximity)
            if model.holes:
                model.holes.after_pull()
