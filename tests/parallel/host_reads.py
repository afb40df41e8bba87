"""Where the host would wait for a device: told on a CPU, where every tensor lies in the host's memory anyway."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import grawa_hvd

OURS = str(Path(grawa_hvd.__file__).parent)
READS = {
    "__array__", "__bool__", "__contains__", "__float__", "__index__", "__int__", "allclose", "cpu", "equal",
    "is_nonzero", "item", "masked_select", "nonzero", "numpy", "tolist", "unique",
}  # fmt: skip


class HostReads(TorchFunctionMode):
    """Notes what would make the host wait within its block, or blocks, if the model were on a device.

    A tensor counts as the host's if, within the blocks, it was read to there (`cpu`), made from numbers without a
    `torch.device`, or computed from such tensors alone. Every other counts as the device's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reads: list[str] = []
        self._uploads: list[str] = []
        self._of_host: dict[int, Tensor] = {}  # kept alive: no other tensor gets their ids

    def taken(self) -> tuple[list[str], list[str]]:
        """What was noted since the last call, by operation, file and line: reads from the device, and uploads to it
        that the host waited for.
        """
        noted = self._reads, self._uploads
        self._reads, self._uploads = [], []
        return noted

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        of_host = self._are_of_host((args, kwargs))
        to_device = any(isinstance(leaf, torch.device) for leaf in tree_leaves((args, kwargs)))
        index = args[1] if name in ("__getitem__", "__setitem__") else None
        if self._has_mask_of_device(index) or (name in READS and not of_host):
            self._reads.append(f"{name}, {_place()}")
        is_sent = to_device and of_host and name in ("tensor", "as_tensor", "to") and not kwargs.get("non_blocking")
        if is_sent or (isinstance(index, list) and not of_host):
            self._uploads.append(f"{name}, {_place()}")
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and (name == "cpu" or (name == "to" and to_device)):
            result = result.clone()  # as from one memory to another
            of_host = name == "cpu"
        if of_host and not to_device:
            self._of_host.update({id(leaf): leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)})
        return result

    def _are_of_host(self, values: Any) -> bool:
        return all(id(leaf) in self._of_host for leaf in tree_leaves(values) if isinstance(leaf, Tensor))

    def _has_mask_of_device(self, index: Any) -> bool:
        masks = [leaf for leaf in tree_leaves(index) if isinstance(leaf, Tensor) and leaf.dtype == torch.bool]
        return not self._are_of_host(masks)


def _place() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        file = Path(frame.f_code.co_filename)
        if str(file).startswith(OURS) or file.parent.name == "optim":
            return f"{file.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
