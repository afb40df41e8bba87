"""Figures, table and goals of `benchmarks.round`; as a command it joins the figures of several runs and plots them.

`python -m benchmarks.round_report RUN.json ... --json ALL.json --plot ALL.png`
"""

from __future__ import annotations

import argparse
import json
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import round_plot
from benchmarks.round_methods import LayerByLayer, LgrawaRound, Method, TorchAverager, UniformRound

Cell = dict[str, Any]
Quartiles = dict[str, float]
OVER_LIMIT, OVER_UNIFORM, AUTHORS_OVER = "over_bare_allreduce", "over_uniform", "authors_over_this"
OVER_AVERAGER = "over_torch_averager"
LARGE = 10_000_000


def figures(methods: Sequence[Method], times: Tensor, errors: dict[str, float]) -> list[dict[str, Any]]:
    """Quartiles of each row's seconds, and of its ratios to other rows within a pass.

    Args:
        methods: R rows in all; the first is the limit.
        times: seconds, [R, passes].
        errors: method → the error of its result.
    """
    method_of = {row: method for method in methods for row in method.rows}
    seconds = dict(zip(method_of, times, strict=True))
    names = (methods[0].name, UniformRound.name, LayerByLayer.name, TorchAverager.name)
    limit, uniform, authors, averager = (seconds[name] for name in names)
    return [
        {
            "name": row,
            "role": method.role,
            "bytes": method.bytes,
            "seconds": quartiles(seconds[row]),
            OVER_LIMIT: quartiles(seconds[row] / limit),
            OVER_UNIFORM: quartiles(seconds[row] / uniform),
            AUTHORS_OVER: quartiles(authors / seconds[row]),
            OVER_AVERAGER: quartiles(seconds[row] / averager),
            "relative_error": errors[method.name],
        }
        for row, method in method_of.items()
    ]


def quartiles(samples: Tensor) -> Quartiles:
    """The three of a vector of at least one number."""
    values = torch.quantile(samples, torch.tensor([0.25, 0.5, 0.75], dtype=samples.dtype)).tolist()
    return dict(zip(("lower_quartile", "median", "upper_quartile"), values, strict=True))


def table(cell: Cell) -> str:
    """One cell as text: medians, and quartiles in brackets; the limit is marked with |."""
    hosts = "1 host" if cell["hosts"] == 1 else f"{cell['hosts']} hosts"
    way = "warm" if cell["warm"] else "from memory"
    lines = [
        f"{cell['model']}: {cell['layers']} layers, {cell['parameters']:,} parameters; "
        f"{cell['ranks']} ranks on {hosts} over {cell['transport']}, {cell['passes']} passes, {way}",
        f"{'method':<30}{'ms':>26}{'× bare allreduce':>22}{'× averager':>20}{'authors / this':>22}{'bytes':>13}",
    ]
    for row in cell["rows"]:
        name = f"| {row['name']}" if row["role"] == "limit" else row["name"]
        columns = [_spread(row[OVER_LIMIT], 22), _spread(row[OVER_AVERAGER], 20), _spread(row[AUTHORS_OVER], 22)]
        lines.append(f"{name:<30}{_spread(row['seconds'], 26, 1e3)}{''.join(columns)}{row['bytes']:>13,}")
    return "\n".join(["", *lines])


def _spread(values: Quartiles, width: int, unit: float = 1.0) -> str:
    low, middle, high = (unit * values[name] for name in ("lower_quartile", "median", "upper_quartile"))
    return f"{f'{middle:.2f} ({low:.2f}–{high:.2f})':>{width}}"


@dataclass(frozen=True)
class Goal:
    """A bound on the median of a ratio in a row.

    Attributes:
        text: what is bound.
        row: its name.
        ratio: its key in the row.
        holds: (median, bound) → whether the goal is met.
        small: the bound for ResNet-20.
        large: the bound for models of 10 million parameters or more.
    """

    text: str
    row: str
    ratio: str
    holds: Callable[[float, float], bool]
    small: float
    large: float

    def bound(self, cell: Cell) -> float | None:
        """What is asked for in a cell; None if nothing is."""
        if self.ratio == OVER_LIMIT and cell["ranks"] != 2:
            return None
        if self.ratio == OVER_AVERAGER and cell["transport"] != "torch":  # it sends by torch in either case
            return None
        if cell["parameters"] >= LARGE:
            return self.large
        return self.small if cell["model"] == "resnet20" else None


GOALS = (
    Goal("LGRAWA / bare allreduce, at most", LgrawaRound.name, OVER_LIMIT, operator.le, small=1.5, large=1.5),
    Goal("LGRAWA / torch's averager, at most", LgrawaRound.name, OVER_AVERAGER, operator.le, small=1.1, large=0.65),
    Goal("LGRAWA / uniform, at most", LgrawaRound.name, OVER_UNIFORM, operator.le, small=1.15, large=1.03),
    # The authors take their norms in the round.
    Goal("authors / LGRAWA + norms, at least", LgrawaRound.with_norms, AUTHORS_OVER, operator.ge, small=5.0, large=2.0),
)


def verdicts(cells: list[Cell]) -> Iterator[str]:
    """A line for each goal in each cell."""
    for goal in GOALS:
        for cell in cells:
            bound = goal.bound(cell)
            if bound is None:
                continue
            ratio = next(row for row in cell["rows"] if row["name"] == goal.row)[goal.ratio]
            verdict = "met" if goal.holds(ratio["median"], bound) else "MISSED"
            where = f"{cell['model']}, {cell['ranks']} ranks, {cell['transport']}"
            yield f"{goal.text:<36} {bound:<6}{where:<30}{_spread(ratio, 20)}  {verdict}"


def main(arguments: list[str] | None = None) -> None:
    """Joins runs; prints what the goals say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round_report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="figures that benchmarks.round wrote")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--plot", type=Path, help="write the picture there")
    options = parser.parse_args(arguments)
    there = [path for path in options.runs if path.exists()]  # a launch that failed has written nothing
    runs = [run for path in there for run in json.loads(path.read_text())["runs"]]
    cells = [cell for run in runs for cell in run["cells"]]
    print(*verdicts(cells), sep="\n")
    if options.json is not None:
        options.json.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
        print(f"All figures: {options.json}")
    if options.plot is not None:
        round_plot.plot(runs, options.plot)
        print(f"Picture: {options.plot}")


if __name__ == "__main__":
    main()
