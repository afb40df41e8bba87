"""A mixing matrix for every round: that of one graph, or of graphs that change."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from grawa_hvd.description import described
from grawa_hvd.topology.graphs import NAMED, named
from grawa_hvd.topology.mixing import mixing_matrix


@runtime_checkable
class Topology(Protocol):
    """Who averages with whom in each round; a pure function, so that it is the same on every rank."""

    def matrix(self, workers: int, number: int) -> Tensor:
        """The mixing matrix of a round, float64 [M, M], doubly stochastic.

        Args:
            workers: M.
            number: of the round, from 0.

        Raises:
            ValueError: if so many workers cannot be connected so.
        """

    def describe(self) -> str:
        """What ranks compare."""


@dataclass(frozen=True)
class Fixed:
    """The same graph in all rounds.

    Args:
        graph: a name in `NAMED`, or a connected networkx graph of nodes 0 to M − 1.
        weights: see `mixing_matrix`.

    Raises:
        ValueError: naming the argument, if it is something else.
    """

    graph: Any
    weights: Any = "metropolis"
    _matrices: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.graph, str):
            if self.graph not in NAMED:
                named(self.graph, 1)  # raises
            return
        matrix = mixing_matrix(self.graph, self.weights)
        self._matrices[len(matrix)] = matrix

    def matrix(self, workers: int, number: int = 0) -> Tensor:
        """See `Topology`.

        Raises:
            ValueError: if the graph has another number of nodes, or there is no such graph of so many workers.
        """
        if isinstance(self.graph, str) and workers not in self._matrices:
            self._matrices[workers] = mixing_matrix(named(self.graph, workers), self.weights)
        if workers not in self._matrices:
            raise ValueError(f"graph must have a node for each of the {workers} workers, but has {len(self.graph)}")
        return self._matrices[workers]

    def describe(self) -> str:
        """A name as it is, a graph by its edges."""
        graph = self.graph if isinstance(self.graph, str) else described(next(iter(self._matrices.values())))
        return f"{graph}, weights={described(self.weights)}"


@dataclass(frozen=True)
class OnePeerExponential:
    """In round k each worker receives from the one 2^(k mod ⌈log2 M⌉) before it, and both halves count alike.

    Where M is a power of two, log2 M rounds of it are exactly a mean of all (Assran et al., ICML 2019; Ying et al.,
    NeurIPS 2021). A worker moves one model a round, whatever M is. The matrices are not symmetric: while a worker is
    absent, the mean of the others is not kept exactly.
    """

    def matrix(self, workers: int, number: int) -> Tensor:
        """See `Topology`."""
        own = torch.eye(workers, dtype=torch.float64, device="cpu")
        distance = 2 ** (number % max(1, (workers - 1).bit_length()))
        return (own + own.roll(distance, dims=0)) / 2

    def describe(self) -> str:
        """Its name."""
        return "OnePeerExponential()"


@dataclass(frozen=True)
class RandomPairs:
    """Pairs drawn anew each round, whose two workers become their mean; of an odd number one stays alone.

    The peers of NoLoCo (Kolehmainen et al., arXiv 2506.10911).

    Args:
        seed: any integer, the same on every rank.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be an integer, but is {self.seed!r}")

    def matrix(self, workers: int, number: int) -> Tensor:
        """See `Topology`."""
        order = list(range(workers))
        # Seeded by a text, which Python hashes alike in every process and version.
        random.Random(f"{self.seed} {number}").shuffle(order)
        matrix = torch.eye(workers, dtype=torch.float64, device="cpu")
        for one, other in zip(order[::2], order[1::2], strict=False):
            matrix[one, [one, other]] = matrix[other, [one, other]] = 0.5
        return matrix

    def describe(self) -> str:
        """Its name and seed."""
        return f"RandomPairs(seed={self.seed})"
