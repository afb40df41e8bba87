"""Who averages with whom: graphs of workers, their mixing matrices, graphs that change from round to round.

    python -m grawa_hvd.topology --workers 32 --degree 4 --plot FILE

searches for a graph in which a mean spreads fast. Graphs are networkx's: named ones and the search need
`pip install grawa_hvd[topology]`; mixing matrices and the graphs that change need PyTorch alone.
"""

from typing import Any

from grawa_hvd.topology.graphs import NAMED, lattice, named, random_regular
from grawa_hvd.topology.mixing import contraction, laplacian, metropolis, mixing_matrix, spectral_gap
from grawa_hvd.topology.rounds import Fixed, OnePeerExponential, RandomPairs, Topology

__all__ = [
    "NAMED",
    "Fixed",
    "OnePeerExponential",
    "RandomPairs",
    "Topology",
    "contraction",
    "laplacian",
    "lattice",
    "metropolis",
    "mixing_matrix",
    "named",
    "random_regular",
    "search",
    "spectral_gap",
]


def __getattr__(name: str) -> Any:
    """`search` is loaded when it is asked for: it needs numpy."""
    if name != "search":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from grawa_hvd.topology.annealing import search  # noqa: PLC0415

    return search
