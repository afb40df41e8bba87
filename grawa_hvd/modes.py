"""In which of autograd's modes this package works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor


@contextmanager
def lasting() -> Iterator[None]:
    """No gradients, and no inference mode: what is made inside may be kept, and updated in place later.

    Users look at the model inside `torch.inference_mode()`, whose tensors can never be written to outside of it.
    """
    with torch.inference_mode(False), torch.no_grad():
        yield


def untold(tensors: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Writes in place of which autograd is not told, as averaging never tells it.

    Two losses may be computed first, and then the one's backward, a step, the other's backward: what the step left alone
    has no gradient of its own in between, and the bare optimizer would run. A round or a pull in between is a small move
    that the second backward sees.
    """
    hidden: AbstractContextManager[None] = torch.autograd._unsafe_preserve_version_counter(tuple(tensors))
    return hidden
