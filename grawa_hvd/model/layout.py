"""A model's layers, one weight each, and where each parameter lies in the flat buffers that travel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.model.cut import Groups, bucket_members, fragments_of
from grawa_hvd.model.names import UNNAMED
from grawa_hvd.transfer import send


class Bucket:
    """Parameters of one dtype and device that travel in one flat buffer.

    Attributes:
        members: which parameters of the layout; indices: the same as int64 on the parameters' device.
        table: the kernels' handle on them.
        name: part of its collectives' names.
        fragment: the part of the model whose rounds it belongs to.
    """

    def __init__(self, layout_parameters: Sequence[Tensor], members: list[int], name: str, fragment: int) -> None:
        self.members = members
        self.fragment = fragment
        self.parameters = [layout_parameters[index] for index in members]
        self.table = ops.LayerTable(self.parameters)
        # As they are now: buffers keep them when a parameter changes its shape.
        self.sizes = [parameter.size() for parameter in self.parameters]
        self.indices = send(torch.tensor(members, device="cpu"), self.parameters[0].device)
        self.name = name

    def new_buffer(self, dtype: torch.dtype | None = None) -> Tensor:
        """A flat buffer of zeros for these parameters, of their type or another."""
        first = self.parameters[0]
        return torch.zeros(self.table.numel, dtype=dtype or first.dtype, device=first.device)

    def copy_to(self, buffer: Tensor) -> None:
        """Let a flat buffer hold these parameters as they are."""
        self.table.pack(torch.ones(len(self.members), dtype=torch.float32, device=buffer.device), buffer)

    def split(self, buffer: Tensor) -> Sequence[Tensor]:
        """The flat parts of a flat buffer, one a parameter."""
        return torch.split(buffer, [size.numel() for size in self.sizes])

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parts of a flat buffer in the shapes and memory orders of the parameters."""
        return [
            part.as_strided(size, strides, part.storage_offset())
            for part, size, strides in zip(self.split(buffer), self.sizes, self.table.wire_strides, strict=True)
        ]


class Layout:
    """The parameters that are averaged, grouped into layers (one weight each) and buckets (one message each).

    Args:
        names: parameter → name, in order.
        layers: "parameter" (a layer is a parameter tensor: the paper's choice) or "module" (the tensors of one module).
        groups: buckets, as in Horovod: how many, or lists of parameters; None for as many as there are 64 MiB.
        fragments: into how many parts of like size the layers are dealt, in order.

    Raises:
        ValueError: if there are fewer layers than fragments.

    Attributes:
        parameters: P tensors; names: their names.
        layer_names: L names; layer_of: the layer of each parameter, int64 [P], where the parameters are.
        layers_of: the layers of each fragment.
        table: the kernels' handle on all parameters.
        buckets: which parameters travel together.
        refusal: why this model cannot be averaged; None if it can.
    """

    def __init__(self, names: dict[Tensor, str], layers: str, groups: Groups, fragments: int = 1) -> None:
        self.parameters = list(names)
        self.names = list(names.values())
        labels = self.names if layers == "parameter" else [_module_of(name) for name in self.names]
        self.layer_names = list(dict.fromkeys(labels))
        numbers = {label: number for number, label in enumerate(self.layer_names)}
        self.device = self.parameters[0].device if self.parameters else torch.device("cpu")
        self.refusal = _refusal(self.parameters)
        self._layer_numbers = [numbers[label] for label in labels]
        self.layer_of = self.indices(self._layer_numbers)
        self.table = ops.LayerTable(self.parameters)
        if fragments > max(1, len(self.layer_names)):
            raise ValueError(
                f"fragments must be at most the number of layers, {len(self.layer_names)}, but is {fragments}"
            )
        fragment_of = fragments_of(self.parameters, self._layer_numbers, fragments)
        self.buckets = [
            Bucket(self.parameters, members, f"bucket.{number}", fragment_of[members[0]])
            for number, members in enumerate(bucket_members(self.parameters, groups, fragment_of))
        ]
        self.layers_of = [
            sorted({self._layer_numbers[index] for index, own in enumerate(fragment_of) if own == fragment})
            for fragment in range(fragments)
        ]
        self._by_module = len(self.layer_names) < len(self.names)
        self._squares = torch.zeros(len(self.layer_names), dtype=torch.float64, device=self.device)
        self._present = torch.zeros_like(self._squares)

    def grad_norms(self) -> Tensor:
        """Frobenius norm of each layer's gradient, [L]; −1 where a layer has none. Overwritten by the next call."""
        return self.by_layer(self.table.grad_norms())

    def by_layer(self, norms: Tensor) -> Tensor:
        """Norms of the parameters, [P], as norms of the layers, [L]; −1 where there was no gradient."""
        if not self._by_module:
            return norms
        wide = norms.double()
        self._squares.zero_().index_add_(0, self.layer_of, wide.clamp(min=0).square_())
        self._present.fill_(-1).scatter_reduce_(0, self.layer_of, wide, "amax")
        return torch.where(self._present == -1, self._present, self._squares.sqrt_())

    def let_go(self) -> None:
        """Let the kernels hold no parameter until they are called again."""
        for table in (self.table, *(bucket.table for bucket in self.buckets)):
            table.let_go()

    def numbers(self, values: Sequence[float]) -> Tensor:
        """Some numbers, float64, where the parameters are."""
        return send(torch.tensor(values, dtype=torch.float64, device="cpu"), self.device)

    def indices(self, values: Sequence[int]) -> Tensor:
        """Numbers of layers or parameters, int64, where the parameters are."""
        return send(torch.tensor(values, dtype=torch.int64, device="cpu"), self.device)

    def describe(self) -> list[str]:
        """The device and a line a parameter: all that ranks must agree on."""
        bucket_of = {index: bucket.name for bucket in self.buckets for index in bucket.members}
        place = self.refusal or f"parameters on {self.device.type}"
        return [place] + [
            f"{name}: shape {tuple(parameter.shape)}, {str(parameter.dtype).removeprefix('torch.')}, "
            f"memory order {_dimension_order(parameter, strides)}, layer {self.layer_names[layer]}, {bucket_of[index]}"
            for index, (name, parameter, strides, layer) in enumerate(
                zip(self.names, self.parameters, self.table.wire_strides, self._layer_numbers, strict=True)
            )
        ]


def _dimension_order(tensor: Tensor, strides: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions from the outermost on the wire to the innermost; in their own order where there is but one."""
    sizes = tensor.size()
    return tuple(sorted(range(tensor.dim()), key=lambda d: (-strides[d] if sizes[d] > 1 else 0, d)))


def _refusal(parameters: Sequence[Tensor]) -> str | None:
    devices = sorted({str(parameter.device) for parameter in parameters})
    if len(devices) > 1:
        return f"all parameters that a worker averages must be on one device, but are on {' and '.join(devices)}"
    if devices == ["meta"]:
        return "the parameters that a worker averages must have data, but are on the device meta"
    return None


def _module_of(name: str) -> str:
    if name.startswith(UNNAMED):  # as parameters are that add_param_group brought: each is a layer of its own
        return name
    module, _, _ = name.rpartition(".")
    return module or "(root)"
