"""What `torch.amp.GradScaler` leaves on an optimizer that handles scaled gradients itself."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


def take_scale(optimizer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Take `grad_scale` and `found_inf` off the optimizer, so that the wrapped one does not act on them again.

    They become None and stay as attributes: GradScaler deletes them after the step.
    """
    scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if found_inf is not None:
        optimizer.grad_scale = optimizer.found_inf = None
    return scale, found_inf


def overflowed(found_inf: Tensor | None) -> bool:
    """Whether GradScaler found Inf or NaN in the gradients: one read by the host, as GradScaler.step does itself."""
    return found_inf is not None and bool(found_inf)


@torch.no_grad()
def unscale_(optimizer: Any, scale: Tensor | None) -> None:
    """Divide the gradients by the scale, as `GradScaler.unscale_` does; None means that this has been done.

    One call for all gradients of a device and dtype: torch's multi-tensor kernels want them alike.
    """
    if scale is None:
        return
    inverse = scale.double().reciprocal().float()
    alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for gradient in (p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None):
        values = gradient._values() if gradient.is_sparse else gradient
        alike[values.device, values.dtype].append(values)
    for (device, _), gradients in alike.items():
        # GradScaler's own call has no bfloat16 on CUDA; and it would look for Inf and NaN once more.
        torch._foreach_mul_(gradients, inverse.to(device, non_blocking=True))
