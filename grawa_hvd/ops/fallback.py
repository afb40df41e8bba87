"""The eager reference as the kernel of every backend that has no compiled one."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from grawa_hvd.ops import reference

P = ParamSpec("P")
R = TypeVar("R")

_library: Any = torch.library.Library("grawa", "IMPL")  # type: ignore[no-untyped-call]  # owns the registrations


def _with_one_warning(name: str, function: Callable[P, R]) -> Callable[P, R]:
    warned = False

    @functools.wraps(function)
    def fallback(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal warned
        if not warned:
            warned = True
            warnings.warn(
                f"grawa_hvd.ops.{name} has no compiled kernel for this device and runs as plain PyTorch operations",
                stacklevel=3,
            )
        return function(*args, **kwargs)

    return fallback


for _name in ("layer_norms", "pack", "blend_", "update_estimates_"):
    # The lowest key that still goes before decomposition: a kernel registered for a backend overrides it.
    _library.impl(_name, _with_one_warning(_name, getattr(reference, _name)), "CompositeExplicitAutograd")
