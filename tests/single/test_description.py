"""What ranks compare: the same text for the same values in every process, and another one for others."""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from grawa_hvd.averaging import LGRAWA, Averaging
from grawa_hvd.description import described


class Graph:
    """As of a library: an object with nothing to compare it by."""

    def __init__(self, *edges: tuple[int, int]) -> None:
        self.edges = set(edges)


class ComparedGraph(Graph):
    def describe(self) -> str:
        return f"edges {sorted(self.edges)}"


def inverse(loss: float) -> float:
    return 1 / loss


@dataclass(frozen=True)
class Holding(Averaging):
    held: Any = None
    note: Any = field(default=None, compare=False)


PAIRS: dict[str, tuple[Any, Any, Any]] = {  # made twice, and another
    "number": (0.25, 0.25, 0.5),
    "name": ("loss", "loss", "accuracy"),
    "function": (inverse, inverse, abs),
    "partial": (functools.partial(pow, 2), functools.partial(pow, 2), functools.partial(pow, 3)),
    "tensor": (torch.arange(2000.0), torch.arange(2000.0), torch.arange(2000.0).index_fill(0, torch.tensor(1000), 0.0)),
    "half tensor": (torch.ones(3).bfloat16(), torch.ones(3).bfloat16(), torch.ones(3)),
    "array": (np.arange(2000), np.arange(2000), np.where(np.arange(2000) == 1000, 0, np.arange(2000))),
    "array of objects": (np.array([inverse, None]), np.array([inverse, None]), np.array([None, inverse])),
    "list": ([1, (inverse, 2)], [1, (inverse, 2)], [1, (inverse, 3)]),
    "set": ({"a", "b", "c"}, {"c", "b", "a"}, {"a", "b"}),
    "mapping": ({"a": [1], "b": inverse}, {"b": inverse, "a": [1]}, {"a": [2], "b": inverse}),
    "object that says": (ComparedGraph((0, 1), (1, 2)), ComparedGraph((1, 2), (0, 1)), ComparedGraph((0, 1))),
    "policy": (LGRAWA(), LGRAWA(), LGRAWA(floor=0.5)),
    "dataclass": (Holding(0.0, torch.ones(2)), Holding(0.0, torch.ones(2)), Holding(0.0, torch.zeros(2))),
}


@pytest.mark.parametrize(("value", "again", "other"), PAIRS.values(), ids=PAIRS)
def test_equal_values_are_described_alike_and_others_otherwise(value: Any, again: Any, other: Any) -> None:
    said = Holding(held=value).describe()
    assert said == Holding(held=again).describe() != Holding(held=other).describe()
    assert " at 0x" not in said


@pytest.mark.parametrize("make", [Graph, lambda: lambda: 1, lambda: Graph().__init__, object, lambda: iter([])])
def test_of_other_objects_no_address_is_compared(make: Any) -> None:
    held = make(), make()
    said = {described(one) for one in held}
    assert len(said) == 1
    assert "0x" not in said.pop()


def test_a_field_that_is_not_compared_is_left_out() -> None:
    assert Holding(note=1).describe() == Holding(note=2).describe() == "Holding(floor=0.0, held=None)"


def test_another_process_says_the_same() -> None:
    """Hashes of strings, and with them the order of sets, differ from process to process."""
    program = "from grawa_hvd.description import described; print(described({'a', 'b', 'c', 'd', print, abs}))"
    told = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=200).stdout
        for _ in range(3)
    }
    assert len(told) == 1
