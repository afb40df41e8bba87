"""Between host and device: the host waits for a device where it reads from it, and must not where it sends to it."""

from __future__ import annotations

import torch
from torch import Tensor


def read(tensor: Tensor) -> Tensor:
    """A tensor's values in the host's memory, once the device has come so far: the host waits."""
    return tensor.cpu()


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device: nobody waits, since the driver takes a copy before this returns."""
    return tensor.to(device, non_blocking=True)
