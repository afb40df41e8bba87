"""A search for the regular graph in which a mean spreads fastest: simulated annealing over swaps of edges."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from grawa_hvd.checked import check_integer
from grawa_hvd.topology.graphs import Graph, check_degree, networkx, random_regular

# What a swap changes falls with the square of the number of workers, and with it the temperatures; found by trial.
FIRST, LAST = 2.0, 0.1
COOLING = 100_000  # swaps from the first temperature to the last; after these the search is heated up again

Edge = tuple[int, int]


def search(
    workers: int, degree: int, seed: int = 0, steps: int | None = None, progress: bool = False,
    history: list[float] | None = None,
) -> Graph:  # fmt: skip
    """Find a connected graph of one degree whose Metropolis matrix W has a small contraction ρ.

    Each step replaces two edges a–b, c–d of a random regular graph by a–c, b–d: degrees stay as they are. What falls
    is (Σ_i λ_i⁸)^⅛ over the eigenvalues of W but the first. It is close to ρ, the largest, and costs two products of
    matrices; a search by ρ itself gets stuck (`docs/topology.md`). A swap that makes it larger is kept with a
    probability that falls over the steps (Kirkpatrick et al., Science 1983).

    Args:
        workers: at least 3.
        degree: from 2 to workers − 1; even where the number of workers is odd.
        seed: any integer: with the same versions of the libraries it finds the same graph.
        steps: how many swaps are tried, at least 1; None for what two cores do within a minute for up to 256 workers.
        progress: whether a progress bar is shown.
        history: if given, receives the least ρ after each step.

    Returns:
        A networkx graph.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    check_degree(workers, degree)
    steps = _steps_for(workers) if steps is None else steps
    check_integer("steps", steps, 1)
    cooling = min(steps, COOLING)
    rng, wiring = random.Random(seed), _Wiring(random_regular(workers, degree, seed), degree)
    now = least = wiring.objective()
    best, kept = wiring.contraction(), list(wiring.edges)
    for step in _shown(range(steps), progress):
        swap = wiring.drawn_swap(rng)
        if swap is not None:
            undo = wiring.swap(*swap)
            then = wiring.objective()
            temperature = FIRST * (LAST / FIRST) ** (step % cooling / cooling) / workers**2
            if then <= now or rng.random() < math.exp((now - then) / temperature):
                now = then
            else:
                wiring.swap(*undo)
        if now < least:
            least, found = now, wiring.contraction()
            if found < best:
                best, kept = found, list(wiring.edges)
        if history is not None:
            history.append(best)
    return _graph_of(workers, kept)


def _steps_for(workers: int) -> int:
    return 3 * COOLING if workers <= 64 else max(500, int(2 * COOLING * (64 / workers) ** 2.5))


def _graph_of(workers: int, edges: list[Edge]) -> Graph:
    graph = networkx().empty_graph(workers)
    graph.add_edges_from(sorted((min(edge), max(edge)) for edge in edges))
    return graph


class _Wiring:
    """A regular graph whose edges are swapped.

    Attributes:
        edges: a list to draw from.
    """

    def __init__(self, graph: Graph, degree: int) -> None:
        self.edges: list[Edge] = list(graph.edges)
        self._known = {frozenset(edge) for edge in self.edges}
        self._weight, size = 1 / (1 + degree), len(graph)
        # W − 11ᵀ/n, of the Metropolis matrix W = (I + A)/(1 + degree).
        self._matrix = self._weight * np.eye(size) - 1 / size
        self._add(self.edges, self._weight)

    def objective(self) -> float:
        """(Σ_i λ_i⁸)^⅛ = ‖(W − 11ᵀ/n)⁴‖^¼ (Frobenius)."""
        squared = self._matrix @ self._matrix
        fourth = squared @ squared
        return math.sqrt(math.sqrt(np.linalg.norm(fourth)))

    def contraction(self) -> float:
        """ρ."""
        return float(np.abs(np.linalg.eigvalsh(self._matrix)).max())

    def drawn_swap(self, rng: random.Random) -> tuple[int, int, Edge, Edge] | None:
        """Which two edges are replaced by which; None if the graph has one of those already."""
        one, other = rng.sample(range(len(self.edges)), 2)
        (a, b), (c, d) = self.edges[one], self.edges[other]
        new = ((a, c), (b, d)) if rng.random() < 0.5 else ((a, d), (b, c))
        is_simple = all(start != end and frozenset((start, end)) not in self._known for start, end in new)
        return (one, other, *new) if is_simple else None

    def swap(self, one: int, other: int, new_one: Edge, new_other: Edge) -> tuple[int, int, Edge, Edge]:
        """Replace two edges; returns the swap that undoes it."""
        old = self.edges[one], self.edges[other]
        self.edges[one], self.edges[other] = new_one, new_other
        self._known.difference_update(map(frozenset, old))
        self._known.update(map(frozenset, (new_one, new_other)))
        self._add(old, -self._weight)
        self._add((new_one, new_other), self._weight)
        return one, other, *old

    def _add(self, edges: Iterable[Edge], weight: float) -> None:
        rows, columns = np.array([*edges, *((b, a) for a, b in edges)]).T
        self._matrix[rows, columns] += weight


def _shown(steps: Iterable[int], progress: bool) -> Any:
    if not progress:
        return steps
    try:
        from tqdm import tqdm  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install grawa_hvd[topology]") from error
    return tqdm(steps, unit="swap")
