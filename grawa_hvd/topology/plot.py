"""A picture of a search: the graph that it found, its way there, and how graphs compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from grawa_hvd.topology.graphs import Graph, networkx
from grawa_hvd.topology.mixing import contraction, metropolis


def plot(found: Graph, graphs: Mapping[str, Graph], history: Sequence[float], file: Path) -> None:
    """Draw the graph found, its contraction over the steps of the search, and those of other graphs by degree.

    Args:
        found: the graph.
        graphs: name → graph, to compare; it may be among them.
        history: the least ρ after each step.
        file: where to, .png or .svg.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install grawa_hvd[topology]") from error
    nx, figure = networkx(), Figure(figsize=(13, 4.2), layout="constrained")
    drawing, climb, comparison = figure.subplots(1, 3)
    size = len(found)
    nx.draw_networkx(
        found, nx.circular_layout(found), ax=drawing, node_size=max(8, 3000 // size), width=max(0.3, 12 / size),
        with_labels=size <= 64, font_size=7, node_color="#8ecae6", edge_color="#555555",
    )  # fmt: skip
    drawing.set_title(f"found: {size} workers, ρ = {history[-1]:.3f}")
    drawing.set_axis_off()
    drawing.set_aspect("equal")
    climb.plot(range(1, len(history) + 1), history, color="#d1495b")
    climb.set(xscale="log", xlabel="swaps tried", ylabel="least ρ so far", title="the search")
    degrees = {name: 2 * graph.number_of_edges() / size for name, graph in graphs.items()}
    for name, graph in graphs.items():
        rho = contraction(metropolis(graph))
        comparison.plot(degrees[name], rho, "o", label=f"{name}: {rho:.3f}")
    comparison.set(
        xscale="log", ylim=(-0.03, 1.03), xlabel="degree: models sent by a worker in a round",
        ylabel="ρ of Metropolis weights", title="contraction of a round (lower is sooner)",
    )  # fmt: skip
    comparison.set_xticks(sorted(set(degrees.values())), labels=[f"{d:.3g}" for d in sorted(set(degrees.values()))])
    comparison.minorticks_off()
    comparison.legend(fontsize=8)
    figure.savefig(file, dpi=120)
