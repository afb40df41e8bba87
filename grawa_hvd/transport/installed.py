"""Which backends this Python has, for `python -m grawa_hvd`."""

from __future__ import annotations

from collections.abc import Mapping

import torch.distributed


def horovod() -> tuple[str | None, Mapping[str, bool] | None]:
    """Horovod's version, and what it was built with; None where it is missing, or built for another torch."""
    try:
        from grawa_hvd.transport import horovod as found  # noqa: PLC0415
    except ImportError:
        return None, None
    return found.version(), found.built_with()


def torch_distributed() -> Mapping[str, bool]:
    """What torch.distributed was built with."""
    return {"Gloo": torch.distributed.is_gloo_available(), "NCCL": torch.distributed.is_nccl_available()}
