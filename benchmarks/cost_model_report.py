"""Fits the cost model, shows its errors, and writes what it predicts into docs/cost_model.md and a picture.

`make cost-model`, or `python -m benchmarks.cost_model_report`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cost_model_plot
from benchmarks.cost_model_fit import NAMES, Sample, fit, relative_errors, samples
from grawa_hvd.cost_model import Constants, Method, period_for, step_seconds
from grawa_hvd.hardware import Gpus

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MARKS = "<!-- {name}: written by make cost-model -->", "<!-- end of {name} -->"
LIMIT = 0.05
WORKERS = (16, 64, 256, 1024, 4096)
PER_HOST = (4, 8)
GIGABITS = (1, 10, 25, 100, 400)
PARAMETERS = (10**6, 10**7, 10**8, 10**9, 10**10)
UNITS = {
    "latency": ("α, a hop", 1e6, "µs"),
    "software": ("host, a byte sent", 1e9, "ns"),
    "link": ("wire time over nominal", 1.0, ""),
    "round": ("round beside its all-reduce, a byte", 1e9, "ns"),
    "half": ("16 bits: conversion and sums, a byte", 1e9, "ns"),
    "local": ("local step beside the plain one, a byte", 1e9, "ns"),
}


@dataclass(frozen=True)
class Hardware(Gpus):
    """Of GPU hosts and what they train, for predictions: assumptions, none of them measured here.

    Attributes:
        flops: that a GPU sustains in training, a second.
        tokens: (or images' worth of work) of a GPU in a step: 6 · parameters · tokens floating-point operations.
        least: seconds of the shortest step: launches, data, the optimizer.
    """

    flops: float = 200e12
    tokens: int = 4096
    least: float = 0.01

    def compute(self, parameters: int) -> float:
        """Seconds of a step without communication."""
        return max(self.least, 6 * parameters * self.tokens / self.flops)

    def period(self, parameters: int, workers: int, per_host: int, gigabits: float, link: float, half: bool = False,
               overlapped: bool = False) -> int:  # fmt: skip
        """The smallest period that keeps communication within `LIMIT`."""
        cluster, compute = self.cluster(workers, per_host, gigabits), self.compute(parameters)

        def method(period: int) -> Method:
            return Method("models", period, half=half, overlap=period // 2 if overlapped else 0)

        return period_for(LIMIT, 4 * parameters, compute, self.constants(link), cluster, method)

    def saved_by_hierarchy(self, parameters: int, workers: int, per_host: int, gigabits: float, link: float) -> float:
        """The share of a step that is saved where of the rounds every 16 steps all but each fourth stay in the host."""
        cluster, compute, constants = (
            self.cluster(workers, per_host, gigabits), self.compute(parameters), self.constants(link)
        )  # fmt: skip
        flat, nested = (
            step_seconds(method, 4 * parameters, compute, constants, cluster)
            for method in (Method("models", 16), Method("models", 64, local_period=16))
        )
        return 1 - nested / flat


def fitted_table(constants: Constants) -> str:
    """The constants in Markdown."""
    lines = ["| constant | fitted |", "|---|---|"]
    for name in NAMES:
        text, scale, unit = UNITS[name]
        lines.append(f"| {text} (`{name}`) | {scale * getattr(constants, name):.3g} {unit} |")
    return "\n".join(lines)


def error_table(measured: list[Sample], constants: Constants) -> str:
    """Every cell in Markdown: measured, predicted, relative error."""
    errors = relative_errors(measured, constants)
    sizes = [abs(error) for error in errors]
    lines = [
        f"{len(measured)} cells; the median of the relative errors' sizes is {statistics.median(sizes):.0%}, the "
        f"largest {max(sizes):.0%}.",
        "",
        "| where | method | measured, ms | predicted, ms | error |",
        "|---|---|---:|---:|---:|",
    ]
    for sample, error in zip(measured, errors, strict=True):
        milliseconds = f"{1e3 * sample.seconds:.4g} | {1e3 * sample.predicted(constants):.4g}"
        lines.append(f"| {sample.place} | {sample.name} | {milliseconds} | {error:+.0%} |")
    return "\n".join(lines)


def period_table(hardware: Hardware, link: float) -> str:
    """What period keeps communication within the limit, in Markdown: plain / fp16 / overlapped over half a period."""
    lines = [
        "| parameters | Gbit/s |" + "".join(f" {workers:,} workers |" for workers in WORKERS),
        "|---:|---:|" + "---:|" * len(WORKERS),
    ]
    for parameters in PARAMETERS:
        for gigabits in GIGABITS:
            cells = [
                " / ".join(
                    f"{hardware.period(parameters, workers, max(PER_HOST), gigabits, link, half, overlapped):,}"
                    for half, overlapped in ((False, False), (True, False), (False, True))
                )
                for workers in WORKERS
            ]
            lines.append(f"| {count(parameters)} | {gigabits} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hierarchy_table(hardware: Hardware, link: float, workers: int = 256) -> str:
    """What rounds within hosts save, in Markdown: of a step's time, with 4 / with 8 GPUs a host."""
    lines = [
        "| parameters |" + "".join(f" {gigabits} Gbit/s |" for gigabits in GIGABITS),
        "|---:|" + "---:|" * len(GIGABITS),
    ]
    for parameters in PARAMETERS:
        cells = [
            " / ".join(
                f"{hardware.saved_by_hierarchy(parameters, workers, per_host, gigabits, link):.1%}"
                for per_host in PER_HOST
            )
            for gigabits in GIGABITS
        ]
        lines.append(f"| {count(parameters)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def count(parameters: int) -> str:
    """10⁶ → 1 M."""
    return f"{parameters // 10**9} B" if parameters >= 10**9 else f"{parameters // 10**6} M"


def write(path: Path, parts: dict[str, str]) -> None:
    """Put every part between its marks.

    Raises:
        ValueError: naming the part whose marks the file lacks.
    """
    text = path.read_text()
    for name, part in parts.items():
        begin, end = (mark.format(name=name) for mark in MARKS)
        found = re.search(f"{re.escape(begin)}.*?{re.escape(end)}", text, re.DOTALL)
        if not found:
            raise ValueError(f"{path} has no {begin!r} … {end!r}")
        text = text[: found.start()] + f"{begin}\n{part}\n{end}" + text[found.end() :]
    path.write_text(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model_report", description=__doc__)
    add = parser.add_argument
    add("--fit", nargs="+", type=Path, default=[RESULTS / "cluster.json"],
        help="what the constants are fitted to (default: what make bench-cluster wrote)")  # fmt: skip
    add("--check", nargs="*", type=Path, default=[RESULTS / "round_loopback.json"],
        help="what is predicted with them, for other numbers of ranks (default: of make bench-round)")  # fmt: skip
    add("--docs", type=Path, default=ROOT / "docs" / "cost_model.md", help="default: docs/cost_model.md")
    add("--plot", type=Path, default=RESULTS / "cost_model.png", help="default: benchmarks/results/cost_model.png")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Fits, prints constants and errors, writes tables and picture."""
    options = parse(arguments)
    measured, others = (
        [sample for path in paths for sample in samples(json.loads(path.read_text()))]
        for paths in (options.fit, options.check)
    )
    constants, hardware = fit(measured), Hardware()
    parts = {
        "constants": fitted_table(constants),
        "errors": error_table(measured, constants),
        "check": error_table(others, constants) if others else "Nothing to check against.",
        "periods": period_table(hardware, constants.link),
        "hierarchy": hierarchy_table(hardware, constants.link),
    }
    print(parts["constants"], parts["errors"], parts["check"], sep="\n\n")
    write(options.docs, parts)
    cost_model_plot.plot(hardware, constants.link, options.plot)
    print(f"\nPredictions: {options.docs}, {options.plot}")


if __name__ == "__main__":
    main()
