"""The picture of the cost model: the period that keeps communication small, over the number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.cost_model_report import Hardware


def plot(hardware: Hardware, link: float, path: Path) -> None:
    """A panel a model size, a line a rate: solid in float32, dashed where a round overlaps half a period of training.

    Args:
        hardware: what is assumed of the hosts.
        link: the wire's time over the nominal one, as fitted.
        path: of the picture.
    """
    import matplotlib  # noqa: PLC0415  (only where a plot is asked for)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    from benchmarks.cost_model_report import LIMIT, PARAMETERS, PER_HOST, count  # noqa: PLC0415  (it uses this module)

    figure, grid = plt.subplots(1, len(PARAMETERS), figsize=(14, 4.4), sharey=True, layout="constrained")
    for axes, parameters in zip(grid, PARAMETERS, strict=True):
        _panel(axes, hardware, link, parameters)
        compute = f"{1e3 * hardware.compute(parameters):,.0f} ms a step"
        axes.set_title(f"{count(parameters)} parameters, {compute}", loc="left", fontsize=9)
        axes.set_xlabel(f"workers, {max(PER_HOST)} a host", fontsize=9)
    grid[0].set_ylabel(f"period τ that keeps communication within {LIMIT:.0%}")
    grid[0].legend(title="each host's link", fontsize=8, title_fontsize=8, frameon=False, loc="upper right")
    figure.suptitle("Predicted, for assumed GPU hosts (docs/cost_model.md): solid: rounds that training waits for; "
                    "dashed: rounds behind half a period of training", x=0.01, ha="left", fontsize=10)  # fmt: skip
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axes: Any, hardware: Hardware, link: float, parameters: int) -> None:
    from benchmarks.cost_model_report import GIGABITS, PER_HOST, WORKERS  # noqa: PLC0415

    for number, gigabits in enumerate(GIGABITS):
        for overlapped, style in ((False, "-"), (True, "--")):
            periods = [hardware.period(parameters, workers, max(PER_HOST), gigabits, link, overlapped=overlapped)
                       for workers in WORKERS]  # fmt: skip
            label = None if overlapped else f"{gigabits} Gbit/s"
            axes.plot(WORKERS, periods, style, color=f"C{number}", linewidth=2, zorder=2 + overlapped, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(WORKERS, [f"{workers}" for workers in WORKERS], fontsize=8)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
