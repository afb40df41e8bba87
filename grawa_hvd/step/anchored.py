"""Optimizers that compute the parameter from their state at every step: what moved it otherwise is undone."""

from __future__ import annotations

import warnings

import torch

from grawa_hvd.caller import stacklevel

# x = x0 − s / √v: dual averaging (Nesterov, 2009), MADGRAD (Defazio & Jelassi, 2021), FTRL (McMahan, 2011). Known by
# their names, since nothing else tells them before they have stepped.
ANCHORED = frozenset({"madgrad", "mirrormadgrad", "dualaveraging", "adadual", "ftrl", "rda", "dadaptadagrad"})


def warn_of_anchored(optimizer: torch.optim.Optimizer) -> None:
    """Tell, where a class is known to be of this kind, that rounds will be undone."""
    for kind in type(optimizer).__mro__:
        if kind.__name__.replace("_", "").lower() in ANCHORED:
            warnings.warn(
                f"{kind.__name__} computes the parameters from its state (x = x0 − s/…) at every step, so each step "
                "undoes what the last round did. Choose an optimizer that moves the parameters from where they are",
                stacklevel=stacklevel(),
            )
            return
