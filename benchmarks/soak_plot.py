"""The picture of `benchmarks.soak`: the loss under faults, what counts over time, and where the time went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.soak_report import SHARES

COLORS = {"grawa_hvd": "C0", "hvd.DistributedOptimizer": "C1"}
SHADES = {"goodput": "C2", "lost": "C3", "apart": "0.8"}


def plot(results: dict[str, Any], path: Path) -> None:
    """Three panels; a tick below the first for each fault."""
    import matplotlib  # noqa: PLC0415  (only where a plot is asked for)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, panels = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained", width_ratios=(3, 3, 2.4))
    rows = results["rows"]
    _loss(panels[0], rows)
    _progress(panels[1], rows)
    _shares(panels[2], rows)
    versions = results["versions"]
    figure.suptitle(
        f"{rows[0]['size']} workers of an elastic horovodrun "
        f"{'on three network namespaces of' if results['cluster'] else 'on'} one machine ({results['cpu']}, "
        f"{results['processors']} processors); "
        f"one is killed {results['every']:g} s after all are there again; horovod {versions['horovod']} over Gloo, "
        f"torch {versions['torch']}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _loss(axes: Any, rows: list[dict[str, Any]]) -> None:
    for number, row in enumerate(rows):
        times, _, losses = zip(*row["loss"], strict=True)
        axes.plot(times, losses, color=COLORS[row["name"]], linewidth=1.2, label=row["name"])
        when = [fault["time"] for fault in row["faults"]]
        axes.plot(when, [0.03 + 0.035 * number] * len(when), "|", color=COLORS[row["name"]], markersize=6,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set(yscale="log", xlabel="s", title="Loss on held-out data; | a fault")
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)


def _progress(axes: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        times, counts = zip(*row["progress"], strict=True)
        axes.plot(times, [row["batch"] * count / 1e6 for count in counts], color=COLORS[row["name"]], label=row["name"])
    axes.set(xlabel="s", title="Samples that count, millions")
    axes.set_ylim(bottom=0)
    _plain(axes)


def _shares(axes: Any, rows: list[dict[str, Any]]) -> None:
    left = [0.0] * len(rows)
    for share, label in SHARES.items():
        widths = [100 * row[share] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=SHADES[share], label=label, height=0.5)
        for number, width in enumerate(widths):
            if width > 8:
                axes.annotate(f"{width:.0f}%", (left[number] + width / 2, number), ha="center", va="center", fontsize=9)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), [row["name"].replace(".", ".\n") for row in rows], fontsize=9)
    axes.set(xlim=(0, 100), ylim=(-1.6, len(rows) - 0.5))
    axes.set(xlabel="% of the time of all workers", title="Where the time went")
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set(fontsize=10, ha="left", position=(0, 1))
