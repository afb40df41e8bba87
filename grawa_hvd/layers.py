"""A model's layers: their names and groups, and where each parameter lies in the flat buffers that travel."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.transfer import send

UNNAMED = "allreduce.noname."
# A message of Horovod's fusion threshold (64 MiB) or more travels from where it lies; smaller ones that are ready at
# the same time are copied together first.
BUCKET_BYTES = 64 * 2**20
Groups = int | list[list[Tensor]] | None


def validated_names(
    named_parameters: Iterable[tuple[str, Tensor]] | None, param_groups: list[dict[str, Any]]
) -> dict[Tensor, str]:
    """Parameter → name, in the order of `named_parameters`, checked as `hvd.DistributedOptimizer` does.

    Raises:
        ValueError: if entries are not pairs, names repeat, or a parameter of the optimizer has no name.
    """
    owned = [parameter for group in param_groups for parameter in group["params"]]
    if named_parameters is None:
        return dict(unnamed(param_groups))
    pairs = list(named_parameters)
    if any(not isinstance(pair, tuple) for pair in pairs):
        raise ValueError(
            "named_parameters should be a sequence of tuples (name, parameter), "
            "usually produced by model.named_parameters()."
        )
    names = [name for name, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise ValueError(f"Parameter names in named_parameters must be unique. Found duplicates: {', '.join(repeated)}")
    named = {id(parameter) for _, parameter in pairs}
    missing = [str(id(parameter)) for parameter in owned if id(parameter) not in named]
    if missing:
        raise ValueError(
            "named_parameters was specified, but one or more model parameters were not named. "
            f"Python object ids: {', '.join(missing)}"
        )
    result: dict[Tensor, str] = {}
    for name, parameter in pairs:  # a tied parameter keeps its first name
        result.setdefault(parameter, name)
    return result


def unnamed(param_groups: list[dict[str, Any]]) -> list[tuple[Tensor, str]]:
    """Names for parameters that were given none, as Horovod makes them."""
    return [
        (parameter, f"{UNNAMED}{i}.{j}")
        for i, group in enumerate(param_groups)
        for j, parameter in enumerate(group["params"])
    ]


def validated_groups(groups: Groups) -> Groups:
    """`groups=`, checked as `hvd.DistributedOptimizer` does.

    Raises:
        ValueError: if it is neither a positive integer nor a list of lists of distinct tensors.
    """
    if groups is None:
        return None
    if not (isinstance(groups, list) or groups > 0):
        raise ValueError("groups should be a non-negative integer or a list of list of torch.Tensor.")
    if isinstance(groups, list):
        seen: set[int] = set()
        for parameter in (parameter for group in groups for parameter in group):
            if not isinstance(parameter, Tensor):
                raise ValueError("groups must consist of torch.Tensor.")
            if id(parameter) in seen:
                raise ValueError("A parameter can only appear once in groups.")
            seen.add(id(parameter))
    return groups


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
        self.indices = send(torch.tensor(members), self.parameters[0].device)
        self.name = name
        # As they are now: what lies in a buffer stays in this order when a parameter's memory format changes.
        self.strides = [memory_strides(parameter) for parameter in self.parameters]

    def new_buffer(self) -> Tensor:
        """A flat buffer of zeros for these parameters."""
        first = self.parameters[0]
        return torch.zeros(self.table.numel, dtype=first.dtype, device=first.device)

    def split(self, buffer: Tensor) -> Sequence[Tensor]:
        """The flat parts of a flat buffer, one a parameter."""
        return torch.split(buffer, [parameter.numel() for parameter in self.parameters])

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The parts of a flat buffer in the shapes and memory orders of the parameters."""
        return [
            part.as_strided(parameter.size(), strides, part.storage_offset())
            for part, parameter, strides in zip(self.split(buffer), self.parameters, self.strides, strict=True)
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
        fragment_of = _fragments(self.parameters, self._layer_numbers, fragments)
        self.buckets = [
            Bucket(self.parameters, members, f"bucket.{number}", fragment_of[members[0]])
            for number, members in enumerate(_bucket_members(self.parameters, groups, fragment_of))
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

    def wire_strides(self) -> list[tuple[int, ...]]:
        """For each parameter the strides of the order in which it lies in flat buffers."""
        result: list[tuple[int, ...]] = [()] * len(self.parameters)
        for bucket in self.buckets:
            for index, strides in zip(bucket.members, bucket.strides, strict=True):
                result[index] = strides
        return result

    def numbers(self, values: Sequence[float]) -> Tensor:
        """Some numbers, float64, where the parameters are."""
        return send(torch.tensor(values, dtype=torch.float64), self.device)

    def indices(self, values: Sequence[int]) -> Tensor:
        """Numbers of layers or parameters, int64, where the parameters are."""
        return send(torch.tensor(values, dtype=torch.int64), self.device)

    def describe(self) -> list[str]:
        """The device and a line a parameter: all that ranks must agree on."""
        bucket_of = {index: bucket.name for bucket in self.buckets for index in bucket.members}
        place = self.refusal or f"parameters on {self.device.type}"
        return [place] + [
            f"{name}: shape {tuple(parameter.shape)}, {str(parameter.dtype).removeprefix('torch.')}, "
            f"memory order {_dimension_order(parameter)}, layer {self.layer_names[layer]}, {bucket_of[index]}"
            for index, (name, parameter, layer) in enumerate(
                zip(self.names, self.parameters, self._layer_numbers, strict=True)
            )
        ]


def membership(names: Iterable[Tensor]) -> list[tuple[int, torch.dtype, torch.device, tuple[int, ...]]]:
    """What a layout is built from, to notice when it is out of date."""
    return [(id(p), p.dtype, p.device, p.stride()) for p in names]


def averaged(names: dict[Tensor, str], already: Container[int]) -> dict[Tensor, str]:
    """The parameters to average: of floating point, and trained now or at some time before.

    A parameter that was never trained is the same everywhere, and averaging would only cost bytes and rounding. Of
    parameters that share all their memory the first stands for all: the others would be pulled a second time.

    Args:
        names: parameter → name; already: ids of those that have been averaged before.
    """
    result: dict[Tensor, str] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for parameter, name in names.items():
        memory = (parameter.data_ptr(), parameter.shape, parameter.stride())
        trained = parameter.is_floating_point() and (parameter.requires_grad or id(parameter) in already)
        if trained and (parameter.numel() == 0 or memory not in seen):
            result[parameter] = name
            seen.add(memory)
    return result


def digest(lines: Iterable[str]) -> int:
    """A 52-bit digest of some lines: exact in a float64."""
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8], "big") >> 12


def memory_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides of a tensor in flat memory: its own if it is dense, else row-major."""
    strides = [0] * tensor.dim()
    expected = 1
    for dimension in reversed(_dimension_order(tensor)):
        strides[dimension] = expected
        expected *= tensor.size(dimension)
    return tuple(strides)


def _dimension_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the outermost in memory to the innermost; row-major where the tensor is not dense."""
    sizes, strides = tensor.size(), tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda d: (-strides[d] if sizes[d] > 1 else 0, d))
    real = [d for d in order if sizes[d] > 1]
    dense = all(strides[d] == strides[inner] * sizes[inner] for d, inner in itertools.pairwise(real)) and (
        not real or strides[real[-1]] == 1
    )
    if not dense or tensor.numel() == 0 or tensor.is_contiguous():
        return tuple(range(tensor.dim()))
    return tuple([d for d in range(tensor.dim()) if sizes[d] <= 1] + real)


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


def _fragments(parameters: list[Tensor], layer_of: list[int], fragments: int) -> list[int]:
    """The fragment of each parameter: layers in order, cut where it makes parts of like size, none of them empty."""
    layers = 1 + max(layer_of, default=-1)
    sizes = [0] * layers
    for parameter, layer in zip(parameters, layer_of, strict=True):
        sizes[layer] += parameter.numel() * parameter.element_size()
    total, before, fragment = sum(sizes), 0, 0
    fragment_of_layer = []
    for layer, size in enumerate(sizes):
        middle = int(fragments * (before + size / 2) / max(1, total))
        # At most one further than the layer before, and far enough that the layers left suffice.
        fragment = max(min(middle, fragment + (layer > 0), fragments - 1), fragments - (layers - layer), fragment)
        fragment_of_layer.append(fragment)
        before += size
    return [fragment_of_layer[layer] for layer in layer_of]


def _bucket_members(parameters: list[Tensor], groups: Groups, fragment_of: list[int]) -> list[list[int]]:
    """Split parameters by fragment and group, and a group by dtype and device, keeping their order."""
    if isinstance(groups, list):
        group_of = {id(parameter): number for number, group in enumerate(groups) for parameter in group}
        labels: list[Any] = [group_of.get(id(p), (number, "own")) for number, p in enumerate(parameters)]
    elif isinstance(groups, int):
        labels = [index * groups // max(1, len(parameters)) for index in range(len(parameters))]
    else:
        labels = [None] * len(parameters)
    members: dict[Any, list[int]] = {}
    for index, (parameter, label) in enumerate(zip(parameters, labels, strict=True)):
        members.setdefault((fragment_of[index], label, parameter.dtype, parameter.device), []).append(index)
    if groups is not None:
        return list(members.values())
    return [part for bucket in members.values() for part in _parts_by_size(parameters, bucket)]


def _parts_by_size(parameters: list[Tensor], members: list[int]) -> list[list[int]]:
    """Parts of like size in order, each of `BUCKET_BYTES` or more where there is that much."""
    sizes = [parameters[index].numel() * parameters[index].element_size() for index in members]
    count = max(1, sum(sizes) // BUCKET_BYTES)
    parts: list[list[int]] = [[]]
    filled = 0
    for index, size in zip(members, sizes, strict=True):
        if filled + size / 2 > sum(sizes) * len(parts) / count and parts[-1]:
            parts.append([])
        parts[-1].append(index)
        filled += size
    return parts
