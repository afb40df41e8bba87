"""How a model is cut: groups that travel together, messages of like size, fragments with rounds of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

# A message of Horovod's fusion threshold (64 MiB) or more travels from where it lies; smaller ones that are ready at
# the same time are copied together first.
BUCKET_BYTES = 64 * 2**20
Groups = int | list[list[Tensor]] | None


def validated_groups(groups: Groups) -> Groups:
    """`groups=`, checked as `hvd.DistributedOptimizer` does.

    Raises:
        ValueError: if it is neither a positive integer nor a list of lists of distinct tensors.
    """
    if groups is None:
        return None
    is_count = isinstance(groups, int) and not isinstance(groups, bool) and groups > 0
    is_list = isinstance(groups, list) and all(isinstance(group, (list, tuple)) for group in groups)
    if not (is_count or is_list):
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


def fragments_of(parameters: list[Tensor], layer_of: list[int], fragments: int) -> list[int]:
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


def bucket_members(parameters: list[Tensor], groups: Groups, fragment_of: list[int]) -> list[list[int]]:
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
