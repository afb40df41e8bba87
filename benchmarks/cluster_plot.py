"""The picture of `benchmarks.cluster`: throughput over the links' rate, a line a method, and the bytes on the wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cluster_report import rate_name
from grawa_hvd.plan import bits

# Where unshaped links are drawn: that many times the fastest rate.
UNSHAPED = 6.0
COLORS = {"alone": ("0.35",), "gradients": ("C1", "C3"), "models": ("C0", "C2", "C4", "C9", "C5", "C6", "C8")}
STYLES = {"alone": ":", "gradients": "--", "models": "-"}


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    """Medians over the rates, quartiles as whiskers; bytes at the rate whose cell comes first among the shaped."""
    import matplotlib  # noqa: PLC0415  (only where a plot is asked for)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    cells = sorted(cells, key=lambda cell: bits(cell["rate"]))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12.5, 5.2), layout="constrained", width_ratios=(3, 2))
    colors = _colors([row for cell in cells for row in cell["rows"]])
    _throughput(left, cells, colors)
    shaped = [cell for cell in cells if cell["rate"] != "none"]
    _bytes(right, (shaped or cells)[-1], colors)
    first = cells[0]
    versions = first["versions"]
    figure.suptitle(
        f"{first['ranks']} ranks on {first['hosts']} hosts (namespaces of one machine: {first['cpu']}, "
        f"{first['processors']} processors), {first['parameters'] / 1e6:.3g} M parameters; "
        f"horovod {versions['horovod']} over Gloo, torch {versions['torch']}",
        x=0.01, ha="left", fontsize=10,
    )  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _colors(rows: list[dict[str, Any]]) -> dict[str, str]:
    left = {kind: list(names) for kind, names in COLORS.items()}
    kinds = {row["name"]: row["method"]["kind"] for row in rows}
    return {name: left[kind].pop(0) for name, kind in kinds.items()}


def _throughput(axes: Any, cells: list[dict[str, Any]], colors: dict[str, str]) -> None:
    positions = _positions(cells)
    by_name = [{row["name"]: row["images_per_second"] for row in cell["rows"]} for cell in cells]
    for row in max((cell["rows"] for cell in cells), key=len):
        rates, values = zip(*[(x, rows[row["name"]]) for x, rows in zip(positions, by_name, strict=True)
                              if row["name"] in rows], strict=True)  # fmt: skip
        middle = [value["median"] for value in values]
        whiskers = [
            [value["median"] - value["lower_quartile"] for value in values],
            [value["upper_quartile"] - value["median"] for value in values],
        ]
        style = STYLES[row["method"]["kind"]]
        axes.errorbar(rates, middle, whiskers, label=row["name"], color=colors[row["name"]], linestyle=style,
                      marker="o", markersize=4, linewidth=1.8, elinewidth=0.8)  # fmt: skip
    axes.set(xscale="log", yscale="log", ylabel="images / s, all ranks", xlabel="rate of each host's link, each way")
    axes.set_xticks(positions, [rate_name(cell["rate"]) for cell in cells])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(_ticks())
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=axes.get_ylim()[0] / 8)  # room for the names
    axes.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    axes.set_title("Throughput", loc="left", fontsize=10)


def _ticks() -> Any:
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    return LogLocator(subs=(1, 2, 5))


def _positions(cells: list[dict[str, Any]]) -> list[float]:
    """The rates in Gbit/s; unshaped links to the right of all."""
    shaped = [bits(cell["rate"]) / 1e9 for cell in cells if cell["rate"] != "none"]
    beyond = UNSHAPED * max(shaped, default=1.0)
    return [*shaped, *[beyond] * (len(cells) - len(shaped))]


def _bytes(axes: Any, cell: dict[str, Any], colors: dict[str, str]) -> None:
    rows = [row for row in cell["rows"] if row["method"]["kind"] != "alone"]
    sent = [row["bytes_per_step"]["median"] / 1e6 for row in rows]
    axes.barh(range(len(rows)), sent, color=[colors[row["name"]] for row in rows], height=0.7)
    for number, value in enumerate(sent):
        axes.annotate(
            f"{value:.3g}", (value, number), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.set(xscale="log", xlabel="MB a step, all hosts, by their interfaces' counters")
    axes.set_xlim(min(sent) / 4, 2 * max(sent))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"On the wire, {rate_name(cell['rate'])}", loc="left", fontsize=10)
