"""Differences to uniform: a panel a condition, a point with its interval an arm."""

from __future__ import annotations

from pathlib import Path

from experiments.arms import ARMS
from experiments.tasks import Task
from experiments.verdict import Row

INK, GREY, GOOD, BAD = "#333333", "#8a8a8a", "#1a7f4b", "#b3352c"


def plot(task: Task, rows: list[Row], path: Path) -> None:
    """Draw and save.

    Args:
        task: of the rows.
        rows: as `verdict.compared` returns them.
        path: of the picture.
    """
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    conditions = [name for name in task.conditions if any(row.condition == name for row in rows)]
    arms = [arm for arm in ARMS if any(row.arm == arm and row.to_uniform for row in rows)]
    if not arms:
        return
    width, height = 1.6 + 2.0 * len(conditions), 1.5 + 0.3 * len(arms)
    figure, panels = plt.subplots(
        1, len(conditions), figsize=(width, height), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, name in zip(panels[0], conditions, strict=True):
        control = next(row for row in rows if (row.condition, row.arm) == (name, "uniform"))
        axes.set_title(f"{task.conditions[name].title}\nuniform {control.told}", fontsize=9, color=INK)
        axes.axvline(0, color=GREY, linewidth=0.8)
        for row in rows:
            one = row.to_uniform
            if row.condition == name and one is not None:
                color = BAD if one.harms else GOOD if one.helps else INK
                at = arms.index(row.arm)
                axes.plot([one.low, one.high], [at, at], color=color, linewidth=1.6)
                axes.plot(one.mean, at, "o", color=color, markersize=4)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0][0].set_yticks(range(len(arms)), [ARMS[arm].title for arm in arms])
    panels[0][0].invert_yaxis()
    seeds = "–".join(str(count) for count in sorted({row.seeds for row in rows}))
    figure.supxlabel(
        f"{task.title}: the mean of 8 workers minus uniform's, points, 95% interval of {seeds} paired seeds\n"
        "red: harms, green: helps, as defined beforehand", fontsize=9, color=INK,
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)
