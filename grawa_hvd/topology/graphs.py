"""Graphs that have a name, of workers 0 to n − 1, as networkx graphs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from grawa_hvd.checked import check_integer

Graph = Any  # networkx.Graph; networkx is imported where it is used


def ring(workers: int) -> Graph:
    """Each worker and the next one: degree 2."""
    return _circulant(workers, [1])


def torus(workers: int) -> Graph:
    """The grid closest to a square, whose opposite borders meet: degree 4.

    Raises:
        ValueError: if the number of workers is a prime, or below 4.
    """
    rows = next((n for n in range(math.isqrt(workers), 1, -1) if workers % n == 0), 0)
    if not rows:
        raise ValueError(f"a torus needs a number of workers that is no prime, and at least 4, but there are {workers}")
    nx = networkx()
    return nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, workers // rows, periodic=True), ordering="sorted")


def lattice(workers: int, degree: int) -> Graph:
    """A ring in which each worker also knows the next degree/2 on either side: where a search can only get better.

    Raises:
        ValueError: if such a graph does not exist: see `check_degree`. An odd degree needs an even number of workers.
    """
    check_degree(workers, degree)
    opposite = [workers // 2] if degree % 2 else []
    return _circulant(workers, [*range(1, degree // 2 + 1), *opposite])


def exponential(workers: int) -> Graph:
    """Each worker and those at distances 1, 2, 4, … on the ring: degree below 2·log2 M (Ying et al., NeurIPS 2021)."""
    return _circulant(workers, [2**k for k in range((workers - 1).bit_length())])


def complete(workers: int) -> Graph:
    """All with all: degree M − 1."""
    return networkx().complete_graph(workers)


def hypercube(workers: int) -> Graph:
    """Workers whose numbers differ in one bit: degree log2 M.

    Raises:
        ValueError: if the number of workers is no power of two.
    """
    if workers & (workers - 1):
        raise ValueError(f"a hypercube needs a power of two of workers, but there are {workers}")
    graph = networkx().empty_graph(workers)
    graph.add_edges_from((m, m ^ 1 << bit) for m in range(workers) for bit in range(workers.bit_length() - 1))
    return graph


def random_regular(workers: int, degree: int, seed: int = 0) -> Graph:
    """A graph drawn among the connected ones in which every worker has as many neighbors.

    Raises:
        ValueError: if such a graph does not exist: see `check_degree`.
    """
    check_degree(workers, degree)
    nx = networkx()
    # Of degree 3 and more nearly every draw is connected; of degree 2 only a ring is.
    drawn = (nx.random_regular_graph(degree, workers, seed=seed + 1000003 * attempt) for attempt in range(1000))
    return next((graph for graph in drawn if nx.is_connected(graph)), lattice(workers, degree))


NAMED: dict[str, Callable[[int], Graph]] = {
    "ring": ring,
    "torus": torus,
    "exponential": exponential,
    "hypercube": hypercube,
    "complete": complete,
}


def named(name: str, workers: int) -> Graph:
    """The graph of a name in `NAMED`.

    Raises:
        ValueError: if there is no such name, or no such graph of so many workers.
    """
    if not isinstance(name, str) or name not in NAMED:
        raise ValueError(f"graph must be one of {', '.join(map(repr, NAMED))}, or a networkx graph, but is {name!r}")
    check_integer("workers", workers, 1)
    return NAMED[name](workers)


def check_degree(workers: int, degree: int) -> None:
    """Whether there are connected graphs in which each of so many workers has so many neighbors.

    Raises:
        ValueError: if the degree is not from 2 to workers − 1, or workers · degree is odd.
    """
    check_integer("workers", workers, 1)
    if isinstance(degree, bool) or not isinstance(degree, int) or not 2 <= degree < workers:
        raise ValueError(f"degree must be from 2 to {workers - 1} for {workers} workers, but is {degree!r}")
    if workers * degree % 2:
        raise ValueError(f"degree must be even for an odd number of workers, {workers}, but is {degree}")


def networkx() -> Any:
    """The library, or advice.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import networkx as found  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("named graphs need networkx: pip install grawa_hvd[topology]") from error
    return found


def _circulant(workers: int, offsets: list[int]) -> Graph:
    graph = networkx().circulant_graph(workers, [offset for offset in offsets if offset % workers])
    return graph
