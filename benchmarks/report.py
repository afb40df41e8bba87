"""Tables, plot and description of the machine for the figures of `benchmarks.kernels`."""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path
from typing import Any

import torch

import grawa_hvd

Cell = dict[str, Any]
COLORS = {"LayerTable": "C0", "StepTable": "C0", "list": "C2"}
PEER_COLORS = ("C1", "C3", "C4")
LIMIT_COLOR = "0.25"


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Versions, processor and options: what a reader needs to place the figures, and nothing that names the host."""
    device = torch.device(options.device)
    return {
        "versions": {
            "grawa_hvd": grawa_hvd.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
        },
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": options.dtype,
        "threads": options.threads,
        "seconds": options.seconds,
    }


def table(cells: list[Cell]) -> str:
    """The cells of one model as text; the limit is marked with |."""
    first = cells[0]
    on_device = f"{'device µs':>11}{'host µs':>9}{'× best peer':>13}" if "host_microseconds" in first["rows"][0] else ""
    lines = [
        f"\n{first['model']}: {first['layers']} layers, {first['parameters']:,} parameters",
        f"{'operation':<11}{'threads':>7}  {'way':<24}{'median µs':>11}{'quartiles':>21}{'GB/s':>8}"
        f"{'× best peer':>13}{'of limit':>10}{on_device}",
    ]
    for cell in cells:
        for row in cell["rows"]:
            times = row["microseconds"]
            quartiles = f"{times['lower_quartile']:.1f}–{times['upper_quartile']:.1f}"
            name = f"| {row['name']}" if row["role"] == "limit" else row["name"]
            lines.append(
                f"{cell['operation']:<11}{cell['threads']:>7}  {name:<24}{times['median']:>11.1f}{quartiles:>21}"
                f"{row['gigabytes_per_second']:>8.2f}{row['speedup_over_best_peer']:>13.2f}{row['share_of_limit']:>10.0%}"
                f"{_on_device(row)}"
            )
    return "\n".join(lines)


def _on_device(row: dict[str, Any]) -> str:
    if "host_microseconds" not in row:
        return ""
    median, speedup = row["device_microseconds"]["median"], row["device_speedup_over_best_peer"]
    return f"{median:>11.1f}{row['host_microseconds']:>9.1f}{speedup:>13.2f}"


def plot(results: dict[str, Any], path: Path) -> None:
    """GB/s over the bytes that must move: a panel an operation, a line a way, the limit as ceiling."""
    import matplotlib  # noqa: PLC0415  (only where a plot is asked for)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    cells, threads = results["cells"], results["threads"]
    operations = list(dict.fromkeys(cell["operation"] for cell in cells))
    size = (4.6 * len(operations), 0.9 + 4.0 * len(threads))
    figure, grid = plt.subplots(
        len(threads), len(operations), figsize=size, sharey="all", squeeze=False, layout="constrained"
    )
    for count, panels in zip(threads, grid, strict=True):
        for operation, axes in zip(operations, panels, strict=True):
            mine = [cell for cell in cells if (cell["operation"], cell["threads"]) == (operation, count)]
            _panel(axes, mine)
            where = "" if results["device"] != "cpu" else f", {count} thread{'s' * (count > 1)}"
            axes.set_title(f"{operation}{where}", loc="left")
        panels[0].set_ylabel("GB/s (bytes that must move / time)")
    bottom, top = grid[0, 0].get_ylim()
    grid[0, 0].set_ylim(bottom, 12 * top)  # room for the names
    for axes in grid[-1]:
        axes.set_xlabel("bytes that must move")
    for axes in grid[0]:
        axes.legend(fontsize=8, loc="lower right", framealpha=0.9, edgecolor="none")
    processor = results["cpu"] if results["device"] == "cpu" else results["device"]
    figure.suptitle(f"{processor}, {results['dtype']}, torch {results['versions']['torch']}", x=0.01, ha="left")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes: Any, cells: list[Cell]) -> None:
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415

    axes.set(xscale="log", yscale="log")
    cells = sorted(cells, key=lambda cell: cell["rows"][0]["bytes"])
    moved = [cell["rows"][0]["bytes"] for cell in cells]
    peers = [row["name"] for row in cells[0]["rows"] if row["role"] == "peer"]
    colors = {**COLORS, **dict(zip(peers, PEER_COLORS, strict=False))}
    for index, row in enumerate(cells[0]["rows"]):
        rows = [cell["rows"][index] for cell in cells]
        rates = [row["gigabytes_per_second"] for row in rows]
        if row["role"] == "limit":
            axes.plot(moved, rates, color=LIMIT_COLOR, linewidth=1.2, linestyle="--", label=f"limit: {row['name']}")
            continue
        ours = row["role"] == "ours"
        label = f"grawa_hvd {row['name']}" if ours else row["name"]
        style = {"marker": "o", "linewidth": 2.2, "zorder": 3} if ours else {"marker": "s", "linewidth": 1.2}
        color = colors[row["name"]]
        axes.errorbar(moved, rates, _spread(rows), label=label, color=color, markersize=4, elinewidth=0.8, **style)
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25, which="major")
    axes.grid(alpha=0.1, which="minor")
    _name_models(axes, cells, moved)


def _spread(rows: list[dict[str, Any]]) -> list[list[float]]:
    """Distances from the median rate down and up to the quartiles."""
    spread: list[list[float]] = [[], []]
    for row in rows:
        rate, times = row["gigabytes_per_second"], row.get("device_microseconds", row["microseconds"])
        spread[0].append(rate * (1 - times["median"] / times["upper_quartile"]))
        spread[1].append(rate * (times["median"] / times["lower_quartile"] - 1))
    return spread


def _name_models(axes: Any, cells: list[Cell], moved: list[int]) -> None:
    """Names along the top; models of about the same size share one."""
    groups: list[tuple[int, list[str]]] = []
    for cell, size in zip(cells, moved, strict=True):
        if groups and size < 1.25 * groups[-1][0]:
            groups[-1][1].append(cell["model"])
        else:
            groups.append((size, [cell["model"]]))
    for size, names in groups:
        axes.axvline(size, color="0.85", linewidth=0.6, zorder=0)
        axes.text(size, 0.99, ", ".join(names), transform=axes.get_xaxis_transform(), rotation=90, fontsize=7,
                  color="0.45", ha="right", va="top")  # fmt: skip


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
