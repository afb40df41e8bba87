"""Does a searched graph of workers spread a mean faster than hand-crafted ones, and do Laplacian link weights help?

The claims are those of Jameel, Jawed & Schmidt-Thieme, "Optimal Topology Search for Fast Model Averaging in
Decentralized Parallel SGD" (PAKDD 2020): models averaged over a searched topology converge faster than over
hand-crafted ones, and Laplacian weights give "a significant lift in performance" over Metropolis–Hastings weights.

1. **Consensus alone**, 16 and 32 workers. Each worker has 1000 random numbers; a round is x ← W·x. Measured: rounds
   until the distance from the mean is 1% of what it was, 20 draws of the numbers. Graphs: ring, grid, torus, lattice,
   hypercube, exponential, complete, and graphs of degree 4 by `grawa_hvd.topology.search` of as many seeds as
   `--seeds` says. Support for the first claim: every graph found beats the hand-crafted ones of the same degree
   (torus, lattice; with 16 workers also the hypercube). For the second: fewer rounds by Laplacian weights on the
   graphs found.
2. **Training**, 16 workers in the simulator, digits, a 64-32-10 perceptron, SGD (lr 0.05, momentum 0.9, batches of
   8), a round every 4 steps with pull 1, 160 steps. Shards with skewed labels (Dirichlet 0.3), for workers that see
   the same need no fast mixing. **Control**: uniform weights, all with all. Arms: ring, torus, hypercube, a graph
   found, each with Metropolis and Laplacian weights, and one peer a round. Paired by seed: data, shards, start and
   batches. Measured: test accuracy of the workers' own models (their mean) and of the mean model after the last
   round. Support: the graph found minus torus, and Laplacian minus Metropolis on it, are above 0 with their 95%
   intervals.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import networkx as nx
import torch
from torch import Tensor
from torch.nn import functional

import grawa_hvd
from experiments import common, digit_splits
from experiments.topology_plot import plot
from grawa_hvd import topology
from grawa_hvd.averaging import Decentralized

WORKERS, DEGREE, DRAWS, NUMBERS = (16, 32), 4, 20, 1000
TRAINED, PERIOD, LR, ALPHA = 16, 4, 0.05, 0.3
WEIGHTS = ("metropolis", "laplacian")


def hand_crafted(workers: int) -> dict[str, Any]:
    """Name → graph."""
    rows = {16: 4, 32: 4}[workers]
    grid = nx.convert_node_labels_to_integers(nx.grid_2d_graph(rows, workers // rows), ordering="sorted")
    names = ("ring", "torus", "hypercube", "exponential", "complete")
    return {"grid": grid, "lattice": topology.lattice(workers, DEGREE)} | {n: topology.named(n, workers) for n in names}


def searched(workers: int, seed: int, steps: int) -> list[list[int]]:
    """The edges of a graph found."""
    return [list(edge) for edge in topology.search(workers, DEGREE, seed, steps).edges]


def errors(matrix: Tensor, draws: int = DRAWS) -> list[float]:
    """‖x − mean‖ over rounds x ← W·x as a share of what it was at first, the mean of the draws, until it is 1e-3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(draws, len(matrix), NUMBERS, generator=generator, dtype=torch.float64)
    x -= x.mean(dim=1, keepdim=True)
    first, found = x.norm(dim=(1, 2)), [1.0]
    while found[-1] > 1e-3 and len(found) < 400:
        x = matrix @ x
        found.append((x.norm(dim=(1, 2)) / first).mean().item())
    return found


def rounds_to(found: list[float], goal: float = 0.01) -> int:
    """The first round after which the error is at most the goal."""
    return next(number for number, error in enumerate(found) if error <= goal)


def consensus(edges: dict[str, Any]) -> dict[str, Any]:
    """Every graph with both kinds of weights: degree, ρ, and the error over rounds."""
    summary = {}
    for workers in WORKERS:
        found = {f"found, seed {n.split()[-1]}": nx.Graph(e) for n, e in edges.items() if f" {workers} " in n}
        for name, graph in (hand_crafted(workers) | found).items():
            for weights in WEIGHTS:
                matrix = topology.mixing_matrix(graph, weights)
                curve = errors(matrix)
                summary[f"{workers} workers, {name}, {weights}"] = {
                    "degree": 2 * graph.number_of_edges() / workers,
                    "rho": topology.contraction(matrix),
                    "rounds_to_1_percent": rounds_to(curve),
                    "errors": [float(f"{error:.4g}") for error in curve],
                }
    return summary


def arms(found: Any) -> dict[str, Any]:
    """Name → policy of a training run."""
    graphs = {"ring": "ring", "torus": "torus", "hypercube": "hypercube", "found": found}
    pairs = {f"{n}, {w}": Decentralized(g, w) for n, g in graphs.items() for w in WEIGHTS}
    return {"uniform": "uniform", **pairs, "one peer": Decentralized()}


def train(policy: Any, seed: int, steps: int) -> dict[str, float]:
    """One run; accuracies after the last round."""
    data, model = digit_splits.load(seed), digit_splits.perceptron(seed)
    result = grawa_hvd.simulate(
        model, functional.cross_entropy, digit_splits.skewed(data.train, TRAINED, ALPHA, seed),
        optimizer=partial(torch.optim.SGD, lr=LR, momentum=0.9), steps=steps, batch_size=8, averaging=policy,
        period=PERIOD, pull=1.0, proximity=0.0, seed=seed, progress=False,
        evaluate=partial(digit_splits.accuracy, data=data.test),
    )  # fmt: skip
    own = digit_splits.own_accuracies(model, result.workers, data.test)
    return {"own": fmean(own), "mean": result.evaluations[-1][1]}


def differences(found: dict[str, Any], names: list[str], seeds: int) -> dict[str, Any]:
    """Accuracies (%) of each arm, and differences in points, paired by seed."""
    values = {
        (name, kind): [100 * found[f"{name}, seed {seed}"][kind] for seed in range(seeds)]
        for name in names for kind in ("own", "mean")
    }  # fmt: skip
    pairs = [(name, "uniform") for name in names[1:]]
    pairs += [(f"found, {weights}", f"torus, {weights}") for weights in WEIGHTS]
    pairs += [(f"{graph}, laplacian", f"{graph}, metropolis") for graph in ("ring", "torus", "hypercube", "found")]
    summary = {f"{name}: accuracy of {kind}": common.interval(value) for (name, kind), value in values.items()}
    for one, other in pairs:
        for kind in ("own", "mean"):
            summary[f"{one} minus {other}: accuracy of {kind}"] = common.paired(values[one, kind], values[other, kind])
    return summary


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("topology", __doc__, seeds=5)
    options.add_argument("--steps", type=int, default=160, help="of a training run (default: %(default)s)")
    options.add_argument("--swaps", type=int, default=20000, help="of a search (default: %(default)s)")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Search, mix, train, compare, draw."""
    options = parse(arguments)
    file: Path = options.out / "topology.json"
    settings = {"steps": options.steps, "swaps": options.swaps, "degree": DEGREE, "lr": LR, "period": PERIOD}
    searches = {
        f"search, {workers} workers, seed {seed}": partial(searched, workers, seed, options.swaps)
        for workers in WORKERS for seed in range(options.seeds)
    }  # fmt: skip
    edges = common.runs(file, settings, searches)
    policies = arms(nx.Graph(edges[f"search, {TRAINED} workers, seed 0"]))
    todo = {
        f"{name}, seed {seed}": partial(train, policy, seed, options.steps)
        for seed in range(options.seeds) for name, policy in policies.items()
    }  # fmt: skip
    trained = common.runs(file, settings, todo)
    mixed, compared = consensus(edges), differences(trained, [*policies], options.seeds)
    common.summarize(file, {**mixed, **compared})
    for name, row in mixed.items():
        print(f"{name}: degree {row['degree']:.3g}, ρ {row['rho']:.3f}, {row['rounds_to_1_percent']} rounds to 1%")
    for name, (middle, half) in compared.items():
        print(f"{name}: {middle:.2f} ± {half:.2f}")
    plot(mixed, compared, [*policies], options.out / "topology.png")


if __name__ == "__main__":
    main()
