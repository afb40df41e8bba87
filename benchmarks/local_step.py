"""Times a local step of DistributedGrawaOptimizer, when no round is due, beside the bare torch optimizer.

    horovodrun -np 2 -H localhost:2 python -m benchmarks.local_step --json local_step.json --plot local_step.png

Every way holds parameters, gradients and state of its own and takes the same steps; the order of ways is drawn anew for
each pass, and ratios are taken within a pass. Before the first round ours must agree with torch's to rounding.

On CUDA a step's time is from the call until the device is done, and beside it stands the host's part: until the call
returns. `--alone` lets one rank go through its rounds by itself, since two that share a GPU would disturb each other.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor
from tqdm import tqdm

import grawa_hvd
from benchmarks import ranks
from benchmarks.alone import average_alone
from benchmarks.models import MODELS, numel

PERIOD = 16
BARE = "torch, fused"
# A step rounds an element some ten times, relative to the largest of its layer.
TOLERANCE = PERIOD * 20 * torch.finfo(torch.float32).eps

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda parameters, **options: torch.optim.SGD(
        parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4, **options
    ),
    "AdamW": lambda parameters, **options: torch.optim.AdamW(parameters, lr=1e-3, **options),
}


class Way:
    """One way to make local steps of a model, on parameters of its own."""

    def __init__(self, name: str, parameters: list[Tensor], optimizer: Any) -> None:
        self.name, self.parameters, self.optimizer = name, parameters, optimizer
        self.microseconds: list[float] = []
        self.host_microseconds: list[float] = []
        self.is_on_cuda = parameters[0].is_cuda

    def step(self) -> tuple[float, float]:
        """One step; microseconds until it is done, and until the host is free again."""
        if self.is_on_cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        self.optimizer.step()
        host = (time.perf_counter_ns() - begin) / 1e3
        if self.is_on_cuda:
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - begin) / 1e3, host


def ways(model: str, kind: str, device: str) -> list[Way]:
    """The bare optimizer first, then ours: alone, with proximity, and without the fused kernels."""
    make = OPTIMIZERS[kind]
    ours = {
        "ours": {"proximity": 0.0},
        "ours, proximity": {"proximity": 0.01},
        "ours, proximity, fused=False": {"proximity": 0.01, "fused": False},
    }
    result = []
    for name in (BARE, "torch, foreach", *ours):
        parameters = _parameters(model, device)
        if name in ours:
            plain = make(parameters, **({"fused": True} if "fused" in ours[name] else {}))
            optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(plain, averaging="lgrawa", period=PERIOD, **ours[name])
        else:
            optimizer = make(parameters, **{name.removeprefix("torch, "): True})
        result.append(Way(name, parameters, optimizer))
    return result


def _parameters(model: str, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn((2, *shape), generator=generator).to(device) for shape in MODELS[model]()]
    parameters = [torch.nn.Parameter(value.clone()) for value, _ in values]
    for parameter, (_, grad) in zip(parameters, values, strict=True):
        parameter.grad = grad.clone()
    return parameters


def measure(all_ways: list[Way], seconds: float, bar: tqdm[Any]) -> float:
    """Steps all ways in turn until the time is up; the largest deviation of ours from torch before the first round."""
    deviation, passes, start = 0.0, 0, 0.0
    order, going = random.Random(0), True
    while going:
        passes += 1
        for way in order.sample(all_ways, len(all_ways)):
            elapsed, host = way.step()
            if passes > PERIOD and passes % PERIOD != 0:  # warm, with a centre, and no round due
                way.microseconds.append(elapsed)
                way.host_microseconds.append(host)
        if passes == PERIOD - 1:
            deviation = max(_deviation(way, all_ways[0]) for way in all_ways)
        if passes == PERIOD:
            start = time.perf_counter()
        if passes % PERIOD == 0 and passes > 2 * PERIOD:
            # Rank 0's clock decides for all: they meet in rounds.
            left = torch.tensor([seconds - (time.perf_counter() - start)])
            going = bool(hvd.broadcast(left, 0, name="local_step.left") > 0)
            bar.update()
    return deviation


def _deviation(way: Way, bare: Way) -> float:
    pairs = zip(way.parameters, bare.parameters, strict=True)
    return max(float(((a - b).abs().max() / b.abs().max()).detach()) for a, b in pairs if a.numel())


def figures(all_ways: list[Way]) -> list[dict[str, Any]]:
    """Quartiles of each way's time, and of its ratio to the bare optimizer within a pass, over all ranks."""
    rows = []
    for way in all_ways:
        mine = [
            statistics.quantiles(values, n=4)
            for values in (
                way.microseconds,
                _ratios(way.microseconds, all_ways[0].microseconds),
                way.host_microseconds,
                _ratios(way.host_microseconds, all_ways[0].host_microseconds),
            )
        ]
        every = torch.tensor(hvd.allgather_object(mine)).mean(dim=0).tolist()
        names = ("lower_quartile", "median", "upper_quartile")
        times, over, host, host_over = (dict(zip(names, values, strict=True)) for values in every)
        row = {"name": way.name, "microseconds": times, "over_bare": over}
        rows.append({**row, "host_microseconds": host, "host_over_bare": host_over} if way.is_on_cuda else row)
    return rows


def _ratios(own: list[float], bare: list[float]) -> list[float]:
    return [a / b for a, b in zip(own, bare, strict=True)]


def table(cells: list[dict[str, Any]]) -> str:
    """The cells as text."""
    host = f"{'host µs':>11}" if "host_microseconds" in cells[0]["rows"][0] else ""
    lines = [f"{'model':<12}{'optimizer':<10}{'way':<31}{'median µs':>11}{'× bare fused':>14}{'quartiles':>15}{host}"]
    for cell in cells:
        for row in cell["rows"]:
            over = row["over_bare"]
            quartiles = f"{over['lower_quartile']:.2f}–{over['upper_quartile']:.2f}"
            host = f"{row['host_microseconds']['median']:>11.1f}" if "host_microseconds" in row else ""
            lines.append(
                f"{cell['model']:<12}{cell['optimizer']:<10}{row['name']:<31}{row['microseconds']['median']:>11.1f}"
                f"{over['median']:>14.2f}{quartiles:>15}{host}"
            )
    return "\n".join(lines)


def plot(cells: list[dict[str, Any]], path: Path) -> None:
    """Ratio to the bare fused optimizer: a row a cell, a dot a way with its quartiles, the targets as lines."""
    import matplotlib  # noqa: PLC0415  (only where a plot is asked for)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    names = [row["name"] for row in cells[0]["rows"][1:]]
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.75 * len(cells)), layout="constrained")
    for number, name in enumerate(names):
        over = [next(row["over_bare"] for row in cell["rows"] if row["name"] == name) for cell in cells]
        middles = [ratio["median"] for ratio in over]
        spread = [
            [ratio["median"] - ratio["lower_quartile"] for ratio in over],
            [ratio["upper_quartile"] - ratio["median"] for ratio in over],
        ]
        places = [place + 0.16 * (number - (len(names) - 1) / 2) for place in range(len(cells))]
        axes.errorbar(middles, places, xerr=spread, fmt="o", capsize=3, label=name, color=f"C{number}")
    axes.axvline(1, color="0.25", linewidth=1)
    for target, name in ((1.05, "target without proximity"), (1.25, "target with proximity")):
        axes.axvline(
            target, color="0.6", linewidth=1, linestyle=":" if target > 1.1 else "--", label=f"{name}, {target}"
        )
    axes.set_yticks(range(len(cells)), [f"{cell['model']}, {cell['optimizer']}" for cell in cells])
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 4]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time of a local step / that of the bare torch optimizer with fused=True")
    axes.set_title("A local step when no round is due", loc="left")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_step", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", default=["resnet20", "tiny500", "wrn28_10"], choices=MODELS, metavar="MODEL",
        help=f"of {', '.join(MODELS)} (default: %(default)s)")  # fmt: skip
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where the parameters are (default: %(default)s)")
    add("--alone", action="store_true", help="on one rank, which averages with itself")
    add("--seconds", type=float, default=10.0, help="for each model and optimizer (default: %(default)s)")
    add("--json", type=Path, help="write all figures there")
    add("--plot", type=Path, help="write the picture there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a table, and writes JSON and a plot where asked."""
    options = parse(arguments)
    torch.set_num_threads(1)
    described = ranks.environment()
    hvd.init()
    if options.alone:
        average_alone()
    elif hvd.size() < 2:
        raise SystemExit("local_step: on one rank the wrapper steps as torch does; start 2 or more with horovodrun")
    cells = []
    with tqdm(disable=hvd.rank() > 0, leave=False, unit="block") as bar:
        for model in options.models:
            for kind in OPTIMIZERS:
                bar.set_description(f"{model}, {kind}")
                all_ways = ways(model, kind, options.device)
                deviation = measure(all_ways, options.seconds, bar)
                if not deviation <= TOLERANCE:
                    raise SystemExit(f"local_step: {model}, {kind}: ours is {deviation:.1e} away from torch")
                shapes = MODELS[model]()
                head = {"model": model, "layers": len(shapes), "parameters": numel(shapes), "optimizer": kind}
                cells.append({**head, "relative_error": deviation, "rows": figures(all_ways)})
    if hvd.rank() > 0:
        return
    print(table(cells))
    if options.json is not None:
        device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
        head = {**described, "device": device, "seconds": options.seconds, "ranks": hvd.size(), "period": PERIOD}
        results = {**head, "cells": cells}
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot is not None:
        plot(cells, options.plot)


if __name__ == "__main__":
    main()
