"""Decentralized averaging: each worker averages with its neighbors in a graph, and none with all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Mix, Mixing, Observed, Recipe
from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.topology.rounds import Fixed, OnePeerExponential, Topology


@dataclass(frozen=True)
class Decentralized(Mix):
    """x[m] ← (1−λ)·x[m] + λ·Σ_j W[m,j]·x[j], W the mixing matrix of a graph (D-PSGD: Lian et al., NeurIPS 2017).

    A worker moves the bytes of its degree, whatever M is. There is no common centre: a worker's centre is its own
    Σ_j W[m,j]·x[j]. `docs/topology.md` says which graph when.

    Args:
        graph: a name ("ring", "torus", "exponential", "hypercube", "complete"), a connected networkx graph of nodes 0
            to M − 1, or a `Topology`, whose matrices may change from round to round.
        weights: of a name or a graph: "metropolis", "laplacian" or a matrix [M, M]; see `topology.mixing_matrix`.

    Raises:
        ValueError: naming the argument, if either is something else.
    """

    graph: Any = field(default_factory=OnePeerExponential)
    weights: Any = "metropolis"
    _topology: Topology = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        is_topology = isinstance(self.graph, Topology)
        if is_topology and not (isinstance(self.weights, str) and self.weights == "metropolis"):
            raise ValueError(
                f"weights must be left out where graph is {type(self.graph).__name__}, which has its own, but is "
                f"{self.weights!r}"
            )
        object.__setattr__(self, "_topology", self.graph if is_topology else Fixed(self.graph, self.weights))

    def check(self, workers: int) -> None:
        """Whether the graph can be one of so many workers.

        Raises:
            ValueError: if it has another number of nodes, or there is no graph of this name of so many workers.
        """
        self._topology.matrix(workers, 0)

    def recipe(self) -> Recipe:
        """An exchange with neighbors."""
        return Recipe(self, exchange="neighbors")

    def describe(self) -> str:
        """The graph by its matrix or its name."""
        return f"Decentralized({self._topology.describe()})"

    def init(self, workers: int, layers: int) -> dict[int, int]:
        """Fragment → how many rounds it has had: the number by which graphs change."""
        return {}

    def __call__(self, observed: Observed, state: dict[int, int]) -> tuple[Mixing, dict[int, int]]:
        """See `Mix`."""
        usable, number = observed.usable, state.get(observed.fragment, 0)
        if not usable.any():
            raise AllWorkersDivergedError.of(len(usable))
        matrix = among(self._topology.matrix(len(usable), number), usable)
        scores = torch.ones_like(observed.norms).masked_fill(~usable[:, None], torch.nan)
        return Mixing(matrix[:, :, None], scores), {**state, observed.fragment: number + 1}


def among(matrix: Tensor, usable: Tensor) -> Tensor:
    """A mixing matrix while some workers are absent or have diverged.

    A usable worker keeps for itself the weights of neighbors that are not: where the matrix is symmetric, the mean of
    the usable workers stays what it is. A worker that is not usable gets the mean of its usable neighbors, by their
    weights; if it has none, it is left as it is.

    Args:
        matrix: W, [M, M], doubly stochastic, not negative off the diagonal.
        usable: bool, [M].

    Returns:
        Weights of the same shape, whose rows sum to 1.
    """
    off_diagonal = (matrix - matrix.diag().diag()) * usable
    total = off_diagonal.sum(dim=1)
    has_neighbors = total > 0
    healing = off_diagonal / torch.where(has_neighbors, total, 1.0)[:, None]
    usual = off_diagonal + (1 - total).diag()
    alone = torch.eye(len(matrix), dtype=matrix.dtype, device="cpu")
    return torch.where(usable[:, None], usual, torch.where(has_neighbors[:, None], healing, alone))
