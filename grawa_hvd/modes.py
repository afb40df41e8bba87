"""In which of autograd's modes this package works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter


@contextmanager
def lasting() -> Iterator[None]:
    """No gradients, and no inference mode: what is made inside may be kept, and updated in place later.

    Users look at the model inside `torch.inference_mode()`, whose tensors can never be written to outside of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def untold(tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Writes in place of which autograd is not told, as averaging never tells it.

    A script may compute two losses first, and then make the backward of one, a step, the backward of the other. That
    runs beside the bare optimizer where the step left the other part alone, and so it does beside rounds and pulls.
    Such a backward finds the parameters where these have moved them.
    """
    hidden: AbstractContextManager[None] = _unsafe_preserve_version_counter(tuple(tensors))
    return hidden
