"""The compiled extension, of csrc/library.cpp. Importing it also registers the operators of `torch.ops.grawa`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

def build_info() -> dict[str, Any]: ...

class LayerTable:
    def __init__(self, params: Sequence[Tensor], wire_strides: Sequence[Sequence[int]] | None = None) -> None: ...
    @property
    def numel(self) -> int: ...
    def grad_norms(self) -> Tensor: ...
    def norms(self) -> Tensor: ...
    def pack(self, weights: Tensor, out: Tensor, base: Tensor | None = None) -> None: ...
    def blend_(
        self, center: Tensor, pull: Tensor, distances: Tensor | None = None, tells_autograd: bool = True
    ) -> None: ...

class StepTable:
    def __init__(self, algorithm: str, params: Sequence[Tensor], groups: Sequence[int]) -> None: ...
    def set_targets(
        self, norm_rows: Sequence[int], centers: Sequence[Tensor | None], wire_strides: Sequence[Sequence[int]]
    ) -> None: ...
    def step(
        self,
        state: dict[Tensor, Any],
        hyperparameters: Sequence[Any],
        pull: float,
        norms: Tensor | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool: ...
