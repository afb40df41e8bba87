"""Figures, tables and goals of `benchmarks.cluster`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from benchmarks.cluster_methods import ALONE, HOROVOD, Trainee
from benchmarks.round_methods import LgrawaRound
from benchmarks.round_report import LARGE, OVER_LIMIT, quartiles

Cell = dict[str, Any]
OVER_HOROVOD = "images_over_horovod"
BYTES_OVER_HOROVOD = "bytes_over_horovod"
# Horovod's ranks keep asking each other whether there is anything to do: what workers send that never communicate.
OWN_OVER_HOROVOD = "own_bytes_over_horovod"
FIVE_TIMES = "LGRAWA τ = 16"


def figures(methods: list[Trainee], images: int, seconds: Tensor, sent: Tensor) -> list[dict[str, Any]]:
    """A row for each method; ratios to `hvd.DistributedOptimizer` are those within a pass.

    Args:
        methods: M of them, `hvd.DistributedOptimizer` and workers that do not communicate among them.
        images: of all ranks in a step.
        seconds: of each block, [M, passes].
        sent: bytes of all hosts in each block, [M, passes].
    """
    steps = seconds.new_tensor([method.steps for method in methods])[:, None]
    per_step, bytes_ = seconds / steps, sent / steps
    base, alone = ([method.name for method in methods].index(name) for name in (HOROVOD, ALONE))
    own = bytes_ - quartiles(bytes_[alone])["median"]
    return [
        {
            "name": method.name,
            "method": method.describe(),
            "steps": method.steps,
            "seconds_per_step": quartiles(per_step[number]),
            "images_per_second": quartiles(images / per_step[number]),
            OVER_HOROVOD: quartiles(per_step[base] / per_step[number]),
            "bytes_per_step": quartiles(bytes_[number]),
            BYTES_OVER_HOROVOD: quartiles(bytes_[number] / bytes_[base]),
            OWN_OVER_HOROVOD: quartiles(own[number] / own[base]),
        }
        for number, method in enumerate(methods)
    ]


def table(cell: Cell) -> str:
    """One rate as text: medians, and quartiles in brackets."""
    lines = [
        f"\n{place(cell)}: {cell['parameters']:,} parameters in {cell['tensors']} tensors, batch {cell['batch']} "
        f"a rank, {cell['passes']} passes",
        f"{'method':<36}{'images/s':>26}{'× Horovod':>22}{'ms a step':>12}{'MB a step':>12}{'/ Horovod':>11}{'own':>9}",
    ]
    for row in cell["rows"]:
        lines.append(
            f"{row['name']:<36}{spread(row['images_per_second'], 26, 1)}{spread(row[OVER_HOROVOD], 22)}"
            f"{1e3 * row['seconds_per_step']['median']:>12.1f}{row['bytes_per_step']['median'] / 1e6:>12.2f}"
            f"{row[BYTES_OVER_HOROVOD]['median']:>11.4f}{row[OWN_OVER_HOROVOD]['median']:>9.4f}"
        )
    lines.append(f"own: less what {ALONE!r} sends; idle: {cell['idle_bytes_per_second'] / 1e3:.0f} kB/s over all hosts")
    return "\n".join([*lines, *_round_lines(cell), *_digits_lines(cell)])


def place(cell: Cell) -> str:
    """Ranks, hosts and rate, for a heading."""
    hosts = "1 host" if cell["hosts"] == 1 else f"{cell['hosts']} hosts"
    return f"{cell['ranks']} ranks on {hosts}, {rate_name(cell['rate'])}"


def rate_name(rate: str) -> str:
    """1gbit → 1 Gbit/s; none → unshaped."""
    for unit, name in (("gbit", "Gbit/s"), ("mbit", "Mbit/s"), ("kbit", "kbit/s")):
        if rate.endswith(unit):
            return f"{rate.removesuffix(unit)} {name}"
    return "unshaped"


def spread(values: dict[str, float], width: int, digits: int = 2) -> str:
    """Median (quartiles), right-aligned."""
    low, middle, high = (values[name] for name in ("lower_quartile", "median", "upper_quartile"))
    return f"{f'{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})':>{width}}"


def _round_lines(cell: Cell) -> Iterator[str]:
    if "round" not in cell:
        return
    timed = cell["round"]
    yield f"a round of {timed['parameters']:,} parameters, {timed['passes']} passes"
    for row in timed["rows"]:
        seconds = f"{row['seconds']['median']:.3f} s"
        yield f"  {row['name']:<34}{seconds:>10}{spread(row[OVER_LIMIT], 24, 3)} × bare allreduce"


def _digits_lines(cell: Cell) -> Iterator[str]:
    for number, row in enumerate(cell.get("digits", [])):
        if number == 0:
            yield "time to 97 % on digits, medians of the seeds that came there"
        reached = f"{row['reached']} of {row['seeds']} seeds"
        took = f"{row['seconds']:.2f} s, {row['steps']:g} steps" if row["reached"] else "-"
        yield f"  {row['name']:<34}{took:>22}{reached:>16}"


def verdicts(cells: list[Cell]) -> Iterator[str]:
    """A line for each goal in each cell that it is for."""
    for cell in cells:
        at_1_gbit, where = cell["rate"] == "1gbit", rate_name(cell["rate"])
        for row in cell["rows"]:
            method = row["method"]
            if method["kind"] != "models":
                continue
            faster = 5.0 if at_1_gbit and row["name"] == FIVE_TIMES else 1.0
            yield _verdict("images/s over Horovod's, at least", faster, operator.ge, row, OVER_HOROVOD, where)
            if not any(method[name] for name in ("local_period", "half", "overlap")):
                # A round sends what one gradient step sends, and its scores.
                bound = 1.02 / method["period"]
                yield _verdict("bytes over Horovod's, at most", bound, operator.le, row, OWN_OVER_HOROVOD, where)
        timed = cell.get("round")
        if timed and at_1_gbit and timed["parameters"] >= LARGE:
            row = next(row for row in timed["rows"] if row["name"] == LgrawaRound.name)
            yield _verdict("a round over a bare allreduce, at most", 1.05, operator.le, row, OVER_LIMIT, where)


def _verdict(text: str, bound: float, holds: Callable[[float, float], bool], row: dict[str, Any], ratio: str,
             where: str) -> str:  # fmt: skip
    verdict = "met" if holds(row[ratio]["median"], bound) else "MISSED"
    return f"{text:<39} {bound:<8.4g}{where:<12}{row['name']:<32}{spread(row[ratio], 26, 4)}  {verdict}"
