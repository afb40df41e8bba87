"""A search for the regular graph in which a mean spreads fastest: simulated annealing over swaps of edges."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

from grawa_hvd.topology.graphs import Graph, check_degree, networkx, random_regular

# Relative temperatures: a swap that makes ρ larger by 1% is likely at first, and one by .01% unlikely at last.
FIRST, LAST = 3e-3, 2e-5
DENSE = 96  # up to so many workers LAPACK finds all eigenvalues sooner than Lanczos iterations find one


def search(
    workers: int, degree: int, seed: int = 0, steps: int | None = None, progress: bool = False,
    history: list[float] | None = None,
) -> Graph:  # fmt: skip
    """Find a connected graph of one degree whose Metropolis matrix has a small second eigenvalue.

    From a random regular graph, each step replaces edges a–b, c–d by a–c, b–d: degrees stay as they are. What makes ρ
    smaller is kept, what makes it larger with a probability that falls over the steps: a strict climb gets stuck.

    Args:
        workers: at least 3.
        degree: from 2 to workers − 1; even where the number of workers is odd.
        seed: of the random numbers: the same seed finds the same graph with the same versions of the libraries.
        steps: how many swaps are tried, at least 1; None for what half a minute or so allows.
        progress: whether a progress bar is shown.
        history: if given, receives the best ρ after each step.

    Returns:
        A networkx graph, with ρ as `graph.graph["contraction"]`.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    check_degree(workers, degree)
    steps = _steps_for(workers) if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, but is {steps}")
    rng, found = random.Random(seed), _Edges(random_regular(workers, degree, seed))
    contraction = _contraction_of(workers, degree)
    now = best = contraction(found.edges)
    kept = list(found.edges)
    for step in _shown(range(steps), progress):
        swap = found.drawn_swap(rng)
        if swap is not None:
            found.swap(*swap)
            then = contraction(found.edges)
            temperature = FIRST * (LAST / FIRST) ** (step / steps)
            if then <= now or rng.random() < math.exp((now - then) / temperature):
                now = then
            else:
                found.swap_back(*swap)
        if now < best:
            best, kept = now, list(found.edges)
        if history is not None:
            history.append(best)
    graph = networkx().Graph(contraction=best)
    graph.add_nodes_from(range(workers))
    graph.add_edges_from(sorted(tuple(sorted(edge)) for edge in kept))
    return graph


def _steps_for(workers: int) -> int:
    return 20000 if workers <= DENSE else max(500, 20000 * DENSE // (4 * workers))


class _Edges:
    """The edges of a graph, in a list to draw from and a set to look up in."""

    def __init__(self, graph: Graph) -> None:
        self.edges: list[tuple[int, int]] = list(graph.edges)
        self._known = {frozenset(edge) for edge in self.edges}

    def drawn_swap(self, rng: random.Random) -> tuple[int, int, bool] | None:
        """Two edges that can be swapped, and whether the second is turned round; None if the drawn ones cannot be."""
        one, other = rng.sample(range(len(self.edges)), 2)
        turned = rng.random() < 0.5
        new = self._swapped(one, other, turned)
        is_simple = all(a != b and frozenset((a, b)) not in self._known for a, b in new)
        return (one, other, turned) if is_simple else None

    def swap(self, one: int, other: int, turned: bool) -> None:
        """a–b, c–d become a–c, b–d, or a–d, b–c where the second is turned round."""
        new = self._swapped(one, other, turned)
        self._old = self.edges[one], self.edges[other]
        self._put(one, other, new)

    def swap_back(self, one: int, other: int, turned: bool) -> None:
        """Undo the last swap."""
        self._put(one, other, self._old)

    def _swapped(self, one: int, other: int, turned: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        (a, b), (c, d) = self.edges[one], self.edges[other]
        return ((a, d), (b, c)) if turned else ((a, c), (b, d))

    def _put(self, one: int, other: int, new: tuple[tuple[int, int], tuple[int, int]]) -> None:
        for place, edge in zip((one, other), new, strict=True):
            self._known.discard(frozenset(self.edges[place]))
            self.edges[place] = edge
        self._known.update(map(frozenset, (self.edges[one], self.edges[other])))


def _contraction_of(workers: int, degree: int) -> Callable[[list[tuple[int, int]]], float]:
    """ρ of the Metropolis matrix (I + A)/(1 + degree) of a regular graph, from its edges."""
    import numpy as np  # noqa: PLC0415
    from scipy.sparse import csr_array, eye_array  # noqa: PLC0415
    from scipy.sparse.linalg import LinearOperator, eigsh  # noqa: PLC0415

    start = np.random.default_rng(0).normal(size=workers)

    def of(edges: list[tuple[int, int]]) -> float:
        ends = np.array(edges).T
        if workers <= DENSE:
            dense = np.full((workers, workers), -1 / workers)
            dense[ends[0], ends[1]] += 1 / (1 + degree)
            dense[ends[1], ends[0]] += 1 / (1 + degree)
            dense[range(workers), range(workers)] += 1 / (1 + degree)
            eigenvalues = np.linalg.eigvalsh(dense)
            return float(max(-eigenvalues[0], eigenvalues[-1]))
        rows, columns = np.concatenate([ends, ends[::-1]], axis=1)
        matrix = (csr_array((np.ones(len(rows)), (rows, columns))) + eye_array(workers)).tocsr() / (1 + degree)
        # Without the eigenvector of all ones, the largest modulus is ρ.
        operator = LinearOperator(matrix.shape, matvec=lambda x: matrix @ x - x.mean(), dtype=np.float64)
        (largest,) = eigsh(operator, k=1, which="LM", v0=start, tol=1e-4, return_eigenvectors=False)
        return float(abs(largest))

    return of


def _shown(steps: Iterable[int], progress: bool) -> Any:
    if not progress:
        return steps
    from tqdm import tqdm  # noqa: PLC0415

    return tqdm(steps, unit="swap")
