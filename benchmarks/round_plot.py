"""The picture of `benchmarks.round`: a panel a model and number of ranks, a bar a method, the limit as a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {"limit": "0.75", "ours": "C0", "peer": "C1"}


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Milliseconds of every method: medians, quartiles as whiskers.

    Args:
        runs: what `benchmarks.round` wrote, one for each number of ranks: a row of panels.
        path: of the picture.
    """
    import matplotlib  # noqa: PLC0415  (only where a plot is asked for)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    columns = max(len(run["cells"]) for run in runs)
    methods = max(len(cell["rows"]) for run in runs for cell in run["cells"])
    size = (2.2 + 4.2 * columns, 0.7 + (0.8 + 0.3 * methods) * len(runs))
    figure, grid = plt.subplots(len(runs), columns, figsize=size, squeeze=False, layout="constrained")
    for run, panels in zip(runs, grid, strict=True):
        for axes in panels[len(run["cells"]) :]:
            axes.axis("off")
        for number, (cell, axes) in enumerate(zip(run["cells"], panels, strict=False)):
            _panel(axes, cell)
            if number > 0:  # the same methods
                axes.set_yticklabels([])
    figure.suptitle(_title(runs[0]), x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _title(run: dict[str, Any]) -> str:
    versions = run["versions"]
    return (
        f"One round; × is the ratio to a bare allreduce of the same bytes. {run['cpu']}, {run['processors']} "
        f"processors, horovod {versions['horovod']} and torch {versions['torch']} over Gloo, {run['dtype']}"
    )


def _panel(axes: Any, cell: dict[str, Any]) -> None:
    rows = cell["rows"]
    times = [{name: 1e3 * value for name, value in row["seconds"].items()} for row in rows]
    middle = [time["median"] for time in times]
    whiskers = [
        [time["median"] - time["lower_quartile"] for time in times],
        [time["upper_quartile"] - time["median"] for time in times],
    ]
    colors = [COLORS[row["role"]] for row in rows]
    axes.barh(range(len(rows)), middle, xerr=whiskers, color=colors, height=0.72, error_kw={"elinewidth": 0.9})
    axes.axvline(middle[0], color="0.25", linewidth=1.0, linestyle="--")
    for place, (row, time) in enumerate(zip(rows, times, strict=True)):
        ratio = row["over_bare_allreduce"]["median"]
        milliseconds = f"{time['median']:.{0 if time['median'] >= 100 else 1}f}"
        axes.annotate(f"{milliseconds} ms, {ratio:.2f} ×", (time["upper_quartile"], place), xytext=(5, 0),
                      textcoords="offset points", va="center", fontsize=8,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85})  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=9)
    axes.set_xlim(0, 1.45 * max(time["upper_quartile"] for time in times))
    axes.set_xlabel("ms, the longest over the ranks; quartiles")
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    ranks = f"{cell['transport']}, {cell['ranks']} ranks" + (f" on {cell['hosts']} hosts" if cell["hosts"] > 1 else "")
    axes.set_title(f"{cell['model']}, {cell['parameters'] / 1e6:.3g} M in {cell['layers']} layers, {ranks}",
                   loc="left", fontsize=10)  # fmt: skip
