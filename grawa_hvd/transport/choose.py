"""Which transport an optimizer uses: what the user names, else Horovod if it is initialised, else torch.distributed."""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed

from grawa_hvd.transport.base import Transport


def chosen_transport(process_set: Any = None, process_group: Any = None, device_mesh: Any = None) -> Transport:
    """The transport of the group that the user names, or of the backend that is initialised.

    A backend is imported only where it is used.

    Args:
        process_set: an hvd.ProcessSet.
        process_group: a torch.distributed group, or a `Transport` itself.
        device_mesh: a mesh of torch with one dimension. One of the three at most.

    Raises:
        ValueError: if more than one is given, one is of a wrong type, or no backend is initialised.
    """
    given = {"process_set": process_set, "process_group": process_group, "device_mesh": device_mesh}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"only one of {' and '.join(named)} can say who averages with whom")
    if hasattr(process_group, "sum_"):
        own: Transport = process_group
        return own
    if process_set is not None or (not named and _horovod_is_up()):
        from grawa_hvd.transport.horovod import HorovodTransport  # noqa: PLC0415

        return HorovodTransport(process_set)
    if named or torch.distributed.is_initialized():
        from grawa_hvd.transport.torch_distributed import TorchTransport  # noqa: PLC0415

        return TorchTransport(process_group, device_mesh)
    raise ValueError(
        "nothing is initialised to average over: call hvd.init() under horovodrun, or "
        "torch.distributed.init_process_group() under torchrun"
    )


def _horovod_is_up() -> bool:
    horovod = sys.modules.get("horovod.torch")
    return horovod is not None and bool(horovod.is_initialized())
