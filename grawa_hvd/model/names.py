"""Which parameters are averaged, and their names."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable
from itertools import chain, count
from typing import Any

from torch import Tensor

UNNAMED = "allreduce.noname."


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
    is_list = isinstance(named_parameters, Iterable) and not isinstance(named_parameters, Tensor)
    pairs: list[Any] = list(named_parameters) if is_list else [named_parameters]
    if not all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], Tensor) for pair in pairs):
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


def averaged(names: dict[Tensor, str], already: Container[int]) -> dict[Tensor, str]:
    """The parameters to average: of floating point, and trained now or at some time before.

    A parameter that was never trained is the same everywhere, and averaging would only cost bytes and rounding. Of
    parameters that share all their memory, transposed or not, the first stands for all: the others would be pulled a
    second time.

    Args:
        names: parameter → name; already: ids of those that have been averaged before.

    Raises:
        ValueError: naming a parameter that is trained and complex.
    """
    refuse_complex(names)
    result: dict[Tensor, str] = {}
    seen: set[tuple[int, tuple[tuple[int, int], ...]]] = set()
    for parameter, name in names.items():
        memory = (parameter.data_ptr(), _places(parameter))
        trained = parameter.is_floating_point() and (parameter.requires_grad or id(parameter) in already)
        if trained and (parameter.numel() == 0 or memory not in seen):
            result[parameter] = name
            seen.add(memory)
    return result


def _places(parameter: Tensor) -> tuple[tuple[int, int], ...]:
    """Which elements of its memory are a parameter's, in whatever order: pairs of stride and size, the innermost first.

    Dimensions that lie as one are told as one, so that a dense tensor has a single pair.
    """
    pairs = zip(parameter.stride(), parameter.shape, strict=True)
    places: list[tuple[int, int]] = []
    for stride, size in sorted((stride, size) for stride, size in pairs if size != 1):
        if places and places[-1][0] * places[-1][1] == stride:
            places[-1] = (places[-1][0], places[-1][1] * size)
        else:
            places.append((stride, size))
    return tuple(places)


def refuse_complex(names: dict[Tensor, str]) -> None:
    """Whether the parameters that are trained are real.

    Raises:
        ValueError: naming one that is complex.
    """
    for parameter, name in names.items():
        if parameter.is_complex() and parameter.requires_grad:
            raise ValueError(
                f"{name} is complex ({str(parameter.dtype).removeprefix('torch.')}), and complex parameters cannot be "
                "averaged. Keep its real and imaginary parts as a real parameter of one more dimension, and use "
                "torch.view_as_complex of it in the model"
            )


def refuse_sharded(names: dict[Tensor, str]) -> None:
    """Whether each process holds whole parameters.

    Raises:
        ValueError: naming a parameter of which it holds a shard, as of FSDP or tensor parallelism.
    """
    for parameter, name in names.items():
        # By name: their modules take a second to import, and are there already if such a parameter is.
        kinds = {kind.__name__ for kind in type(parameter).__mro__}
        if kinds & {"DTensor", "FlatParameter"}:
            raise ValueError(
                f"{name} is sharded over processes (FSDP or tensor parallelism), but this optimizer averages models of "
                "which each worker has a whole copy"
            )


class OwnedNames:
    """The parameters of an optimizer with their names, also when `add_param_group` brings more.

    Args:
        optimizer: has `param_groups`.
        names: parameter → name, as far as names were given.
    """

    def __init__(self, optimizer: Any, names: dict[Tensor, str]) -> None:
        self._optimizer, self._given = optimizer, names
        self._owned: list[Tensor] = []
        self._sizes: list[int] | None = None
        self._names: dict[Tensor, str] = {}

    def reorder(self, order: list[str]) -> None:
        """From now on, let the parameters come in the order of these names."""
        given = {name: parameter for parameter, name in self._names.items()}
        first = {given[name]: name for name in order if name in given}
        self._given = {**first, **{p: name for p, name in self._given.items() if p not in first}}
        self._sizes = None

    def current(self) -> dict[Tensor, str]:
        """Parameter → name, of all that the optimizer has now; the same object while its groups hold the same."""
        groups = self._optimizer.param_groups
        members = [group["params"] for group in groups]
        owned, sizes = list(chain.from_iterable(members)), list(map(len, members))
        if sizes != self._sizes or not all(map(operator.is_, owned, self._owned)):
            is_owned = set(owned)
            names = {p: name for p, name in {**self._given, **self._names}.items() if p in is_owned}
            taken = set(names.values())
            for parameter, name in unnamed(groups):
                if parameter not in names:
                    names[parameter] = _free(name, taken)
                    taken.add(names[parameter])
            self._owned, self._sizes, self._names = owned, sizes, names
        return self._names


def _free(name: str, taken: Container[str]) -> str:
    """This name, or one like it: a parameter that moved up in its group has kept the name of its former place."""
    return next(free for free in chain([name], (f"{name}.{number}" for number in count(1))) if free not in taken)
