"""Mixing matrices: how much each neighbor counts, so that all workers come to the mean of all.

Row m says what worker m averages. Matrices are doubly stochastic: rows sum to 1, so a worker's model is an average, and
columns do, so the mean over the workers stays what it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Sums of some hundred float64 numbers below 1 are within 1e-13; a user's own matrix may come from float32.
TOLERANCE = 1e-6


def adjacency(graph: Any) -> Tensor:
    """The edges of an undirected networkx graph of nodes 0 to n − 1, float64 [n, n]: 1 or 0, the diagonal 0.

    Raises:
        ValueError: if it is no such graph, or not connected: then workers would never agree.
    """
    if not (hasattr(graph, "edges") and hasattr(graph, "nodes")):
        raise ValueError(f"graph must be a name, a networkx graph or a Topology, but is {graph!r}")
    size = len(graph.nodes)
    if set(graph.nodes) != set(range(size)) or graph.is_directed():
        raise ValueError(f"graph must be undirected, with nodes 0 to {size - 1}, but is {graph} of {list(graph)[:5]} …")
    edges = torch.zeros(size, size, dtype=torch.float64, device="cpu")
    for one, other, *_ in graph.edges:
        if one != other:
            edges[one, other] = edges[other, one] = 1.0
    _check_connected(edges)
    return edges


def metropolis(graph: Any) -> Tensor:
    """Metropolis–Hastings weights, W_ij = 1/(1 + max(d_i, d_j)) for neighbors (Xiao, Boyd & Lall, IPSN 2005).

    Args:
        graph: see `adjacency`.

    Returns:
        W, float64 [n, n], symmetric; no entry is negative.
    """
    edges = adjacency(graph)
    degrees = edges.sum(dim=0)
    return _with_rest_on_diagonal(edges / (1 + torch.maximum(degrees[:, None], degrees)))


def laplacian(graph: Any) -> Tensor:
    """W = I − αL with the best constant weight, α = 2/(λ₂ + λ_max) of the Laplacian L (Xiao & Boyd, 2004, eq. 21).

    Args:
        graph: see `adjacency`.

    Returns:
        W, float64 [n, n], symmetric. The diagonal may be negative where degrees differ much.
    """
    edges = adjacency(graph)
    if len(edges) == 1:
        return torch.ones(1, 1, dtype=torch.float64, device="cpu")
    eigenvalues = torch.linalg.eigvalsh(edges.sum(dim=0).diag() - edges)
    return _with_rest_on_diagonal(edges * (2 / (eigenvalues[1] + eigenvalues[-1])))


def mixing_matrix(graph: Any, weights: Any = "metropolis") -> Tensor:
    """The matrix that `weights` names, or is.

    Args:
        graph: see `adjacency`.
        weights: "metropolis", "laplacian", or a symmetric matrix [n, n] whose rows sum to 1, with no negative numbers
            off the diagonal, and zeros where the graph has no edge.

    Raises:
        ValueError: naming the argument, if either is something else.
    """
    if isinstance(weights, str):
        if weights not in ("metropolis", "laplacian"):
            raise ValueError(f'weights must be "metropolis", "laplacian" or a matrix, but is {weights!r}')
        return metropolis(graph) if weights == "metropolis" else laplacian(graph)
    edges, matrix = adjacency(graph), torch.as_tensor(weights, dtype=torch.float64, device="cpu")
    if matrix.shape != edges.shape:
        raise ValueError(f"weights must have shape {list(edges.shape)} for this graph, but has {list(matrix.shape)}")
    off_diagonal = matrix - matrix.diag().diag()
    faults = {
        "be symmetric": matrix - matrix.T,
        "have rows that sum to 1": matrix.sum(dim=1) - 1,
        "be at least 0 off the diagonal": off_diagonal.clamp(max=0),
        "be 0 where the graph has no edge": off_diagonal * (1 - edges),
    }
    for rule, off in faults.items():
        if not bool((off.abs() <= TOLERANCE).all()):
            raise ValueError(f"weights must {rule}, but is off by {float(off.abs().max()):.2g}: {matrix.tolist()}")
    return _with_rest_on_diagonal(off_diagonal.clamp(min=0) * edges)


def contraction(matrix: Tensor) -> float:
    """ρ = ‖W − 11ᵀ/n‖₂: a round shrinks the workers' distance from their mean to at most ρ times what it was.

    Of a symmetric W it is the second largest modulus of an eigenvalue.
    """
    return float(torch.linalg.matrix_norm(matrix - 1 / len(matrix), ord=2))


def spectral_gap(matrix: Tensor) -> float:
    """1 − ρ: the larger, the sooner workers agree."""
    return 1 - contraction(matrix)


def _with_rest_on_diagonal(off_diagonal: Tensor) -> Tensor:
    return off_diagonal + (1 - off_diagonal.sum(dim=1)).diag()


def _check_connected(edges: Tensor) -> None:
    reached = torch.zeros(len(edges), dtype=torch.float64, device="cpu")
    reached[:1] = 1.0
    for _ in range(len(edges)):
        further = ((edges @ reached + reached) > 0).double()
        if torch.equal(further, reached):
            break
        reached = further
    if not reached.all():
        apart = (reached == 0).nonzero().flatten().tolist()
        raise ValueError(f"graph must be connected, but no path leads from node 0 to nodes {apart[:10]}")
