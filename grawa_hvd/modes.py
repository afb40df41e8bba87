"""In which of autograd's modes this package works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def lasting() -> Iterator[None]:
    """No gradients, and no inference mode: what is made inside may be kept, and updated in place later.

    Users look at the model inside `torch.inference_mode()`, whose tensors can never be written to outside of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield
