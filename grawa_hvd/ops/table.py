"""A fixed list of parameters, prepared once: passing a list costs as much as the work on small models."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from grawa_hvd import _C
from grawa_hvd.modes import untold
from grawa_hvd.ops.reference import NO_GRADIENT, is_dense


class LayerTable:
    """The layers of a model, prepared for many calls of the kernels; it notices moved storages and new gradients.

    The order of elements on the wire is that of each parameter's memory at construction (row-major where it is not
    dense) and stays so when a parameter later changes its memory format.

    Args:
        params: float16, bfloat16, float32 or float64 tensors of any shape, on one device. Their shapes are fixed.

    Raises:
        RuntimeError: if a tensor has another dtype or layout, or has elements that share memory.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._params = list(params)
        self._strides = [_wire_strides(param) for param in self._params]
        self._shapes = [param.shape for param in self._params]
        self._numel = sum(param.numel() for param in self._params)
        self._device: torch.device | None = None
        self._compiled = self._compile()
        self._grad_norms = torch.empty(0, device="cpu")

    @property
    def numel(self) -> int:
        """Number of elements of all parameters."""
        return self._numel

    @property
    def wire_strides(self) -> list[tuple[int, ...]]:
        """For each parameter the strides of the order in which its elements lie on the wire."""
        return list(self._strides)

    def grad_norms(self) -> Tensor:
        """Frobenius norms of the parameters' gradients.

        Returns:
            Norms, shape [layers], float32, or float64 if any parameter is; -1 where there is no gradient. It is the
            same tensor at every call, overwritten by the next: clone it to keep it.

        Raises:
            RuntimeError: if a gradient has an unsupported dtype or another number of elements than its parameter.
        """
        compiled = self._current()
        if compiled is not None:
            return compiled.grad_norms()
        return self._grad_norms_by_ops()

    def norms(self) -> Tensor:
        """Frobenius norms of the parameters themselves.

        Returns:
            Norms, shape [layers], float32, or float64 if any parameter is; a new tensor.
        """
        compiled = self._current()
        if compiled is not None:
            return compiled.norms()
        if not self._params:
            return torch.empty(0, dtype=torch.float32, device="cpu")
        norms: Tensor = torch.ops.grawa.layer_norms(self._params)
        return norms

    def pack(self, weights: Tensor, out: Tensor, base: Tensor | None = None) -> None:
        """Writes the weighted parameters one after the other, as `grawa_hvd.ops.pack` does.

        Args:
            weights: a weight for each layer, shape [layers], float32 or float64.
            out: the flat buffer that is written, shape [numel], contiguous.
            base: if given, subtracted before weighing; shape and dtype of `out`, and it may be the memory of `out`.

        Raises:
            RuntimeError: if a dtype, a shape or a device is wrong, or `out` shares memory with a parameter.
        """
        compiled = self._current()
        if compiled is not None:
            compiled.pack(weights, out, base)
        else:
            torch.ops.grawa.pack(self._in_wire_order(), weights, out, base)

    def blend_(
        self, center: Tensor, pull: Tensor, distances: Tensor | None = None, tells_autograd: bool = True
    ) -> None:
        """Pulls the parameters toward a center in place, as `grawa_hvd.ops.blend_` does.

        Args:
            center: the flat center, shape [numel], contiguous.
            pull: the pull of each layer, shape [layers], float32 or float64; in [0, 1] for an interpolation.
            distances: if given, receives the distances from the center before the blend, shape [layers].
            tells_autograd: whether a backward whose graph has saved the parameters is to fail; else it goes on with
                what they are then.

        Raises:
            RuntimeError: if a dtype, a shape or a device is wrong, or `center` shares memory with a parameter.
        """
        compiled = self._current()
        if compiled is not None:
            compiled.blend_(center, pull, distances, tells_autograd)
            return
        with nullcontext() if tells_autograd else untold(self._params):
            self._blend_by_ops(center, pull, distances)

    def _blend_by_ops(self, center: Tensor, pull: Tensor, distances: Tensor | None) -> None:
        tensors = self._in_wire_order()
        torch.ops.grawa.blend_(tensors, center, pull, distances)
        with torch.no_grad():
            for param, tensor in zip(self._params, tensors, strict=True):
                if tensor is not param:
                    param.copy_(tensor)

    def let_go(self) -> None:
        """Hold no parameter but by its Python object, until the next call: torch swaps none that others hold."""
        self._compiled = None

    def _compile(self) -> _C.LayerTable | None:
        """The table of C++ for where the parameters are now, or None where there are no kernels for that device."""
        devices = {param.device for param in self._params}
        with_kernels = {"cpu", "cuda"} if _C.build_info()["cuda_architectures"] else {"cpu"}
        if len(devices) > 1 or not {device.type for device in devices} <= with_kernels:
            return None
        self._device = next(iter(devices), None)
        return _C.LayerTable(self._params, self._strides)

    def _current(self) -> _C.LayerTable | None:
        # Models are moved whole: the kernels refuse a list of which a part is elsewhere.
        if self._compiled is None or (self._params and self._params[0].device != self._device):
            self._compiled = self._compile()
        return self._compiled

    def _in_wire_order(self) -> list[Tensor]:
        tensors = []
        for index, (param, shape, strides) in enumerate(zip(self._params, self._shapes, self._strides, strict=True)):
            if param.shape != shape:
                raise RuntimeError(
                    f"params[{index}] has changed its shape from {list(shape)} to {list(param.shape)}: "
                    "build a new LayerTable"
                )
            if param.stride() == strides:
                tensors.append(param)
            else:
                tensors.append(torch.empty_strided(shape, strides, dtype=param.dtype, device=param.device))
                tensors[-1].copy_(param.detach())
        return tensors

    def _grad_norms_by_ops(self) -> Tensor:
        grads = [param.grad for param in self._params]
        is_wide = any(param.dtype == torch.float64 for param in self._params)
        dtype, device = torch.float64 if is_wide else torch.float32, self._params[0].device
        result = self._grad_norms
        if result.dtype != dtype or result.device != device or len(result) != len(grads):
            with torch.inference_mode(False):  # it outlives the block
                result = self._grad_norms = torch.empty(len(grads), dtype=dtype, device=device)
        present = [grad for grad in grads if grad is not None]
        if len(present) == len(grads):
            return result.copy_(torch.ops.grawa.layer_norms(present))
        result.fill_(NO_GRADIENT)
        if present:
            places = [index for index, grad in enumerate(grads) if grad is not None]
            norms = torch.ops.grawa.layer_norms(present).to(dtype)
            result[torch.tensor(places, device=device)] = norms
        return result


def _wire_strides(param: Tensor) -> tuple[int, ...]:
    if is_dense(param):
        return param.stride()
    return torch.empty(param.shape, device="meta").stride()
