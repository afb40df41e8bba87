"""Search for a graph of workers, and compare it with those that have a name: `python -m grawa_hvd.topology --help`."""

from __future__ import annotations

import argparse
from pathlib import Path

from grawa_hvd.topology.annealing import search
from grawa_hvd.topology.graphs import NAMED, Graph, lattice, named, networkx
from grawa_hvd.topology.mixing import contraction, laplacian, metropolis
from grawa_hvd.topology.plot import plot


def main(arguments: list[str] | None = None) -> None:
    """Print a table of graphs, and write what was asked for."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    history: list[float] = []
    try:
        found = search(asked.workers, asked.degree, asked.seed, asked.steps, progress=True, history=history)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    graphs = {**_named(asked.workers), f"lattice of degree {asked.degree}": lattice(asked.workers, asked.degree)}
    graphs["found"] = found
    print(f"{'graph':24}{'degree':>8}{'metropolis ρ':>14}{'laplacian ρ':>13}")
    for name, graph in graphs.items():
        degree = 2 * graph.number_of_edges() / asked.workers
        print(f"{name:24}{degree:8.3g}{contraction(metropolis(graph)):14.3f}{contraction(laplacian(graph)):13.3f}")
    if asked.edges:
        networkx().write_edgelist(found, asked.edges, data=False)
    if asked.plot:
        plot(found, graphs, history, asked.plot)


def _named(workers: int) -> dict[str, Graph]:
    graphs = {}
    for name in NAMED:
        try:
            graphs[name] = named(name, workers)
        except ValueError:  # there is none of so many workers
            continue
    return graphs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m grawa_hvd.topology", description=__doc__)
    parser.add_argument("--workers", type=int, required=True, help="number of workers, at least 3")
    parser.add_argument("--degree", type=int, required=True, help="neighbors of each, from 2 to workers − 1")
    parser.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")
    parser.add_argument("--steps", type=int, help="swaps to try; more find better graphs (default: a minute at most)")
    parser.add_argument("--edges", type=Path, metavar="FILE", help="write the graph found, for networkx.read_edgelist")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture, as .png or .svg")
    return parser


if __name__ == "__main__":
    main()
