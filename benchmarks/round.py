"""Time of a round beside the bare allreduce of the same bytes and beside the peers.

`horovodrun -np 2 -H localhost:2 python -m benchmarks.round`, or `-H host1:4,host2:4` over several hosts, or
`torchrun --nproc-per-node 2 -m benchmarks.round --transport torch`; `make bench-round` does both over loopback on 2 and
on 4 processes, and makes table and plot of all.

Every method is first checked against the exact result. Then all are called in turn, in an order that is drawn anew for
each pass over them: what disturbs the machine disturbs all. Before each call the ranks wait for each other, by torch,
so that a call meets Horovod's cycle at no particular moment; its time is the longest over the ranks. Ratios
are those of times within a pass. The optimizer behind our rounds does nothing, so that no local step is in the time.

A small model is called once more, untimed, before each timed call: gradients and parameters come from the cache, as
they do after a backward pass, and no method pays for what its neighbour evicted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from benchmarks import ranks, round_report
from benchmarks.models import MODELS, numel
from benchmarks.round_methods import METHODS, Method, Workload
from benchmarks.timing import no_collection

SMALL_BYTES = 8 << 20
WARM_UP = 2
FEWEST_PASSES = 5
MOST_PASSES = 5000


class WrongResultError(RuntimeError):
    """A method computes something else: its time means nothing."""


def tolerance(size: int) -> float:
    """Largest relative error that passes: one rounding for each of M summands, and 8 for weights and pull."""
    return (size + 8) * torch.finfo(torch.float32).eps


def check(methods: list[Method], work: Workload) -> dict[str, float]:
    """Make the first call of every method; a collective.

    Returns:
        The relative error of each, the largest over the ranks.

    Raises:
        WrongResultError: on every rank, if a result is wrong on one.
    """
    errors = torch.tensor([method.error(work) for method in methods], dtype=torch.float64)
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    for method, error in zip(methods, errors.tolist(), strict=True):
        if not error <= tolerance(work.size):
            raise WrongResultError(f"{method.name}: relative error {error:.2g}, allowed {tolerance(work.size):.2g}")
    return {method.name: error for method, error in zip(methods, errors.tolist(), strict=True)}


def measure(methods: list[Method], seconds: float, warm: bool, bar: tqdm) -> Tensor:
    """Time all methods in turn until rank 0's clock says that it is enough; a collective.

    Args:
        methods: the same on every rank.
        seconds: when to stop, once every method has been timed 5 times.
        warm: call every method once more before it is timed.
        bar: counts seconds.

    Returns:
        Seconds of each call, the longest over the ranks, float64 [rows, passes].
    """
    order, begin = random.Random(0), 0.0
    times: dict[str, list[float]] = {row: [] for method in methods for row in method.rows}
    for number in range(-WARM_UP, MOST_PASSES):
        if number == 0:
            begin = time.perf_counter()
        for method in order.sample(methods, len(methods)):
            if warm:
                method.call()
            dist.barrier()
            for row, elapsed in zip(method.rows, method.timed(), strict=True):
                times[row].append(elapsed)
        spent = time.perf_counter() - begin if number >= 0 else 0.0
        bar.set_postfix_str(f"pass {number + WARM_UP + 1}", refresh=False)
        bar.update(min(spent, seconds) - bar.n)
        if not _agreed(number + 1 < FEWEST_PASSES or spent < seconds):
            break
    measured = torch.tensor(list(times.values()), dtype=torch.float64)[:, WARM_UP:]
    dist.all_reduce(measured, op=dist.ReduceOp.MAX)
    return measured


def _agreed(more: bool) -> bool:
    """What rank 0 says."""
    flag = torch.tensor(int(more))
    dist.broadcast(flag, src=0)
    return bool(flag)


def bench(model: str, on: ranks.Ranks, options: argparse.Namespace, bar: tqdm) -> dict[str, Any]:
    """The cell of one model: all methods on it; a collective."""
    work = Workload(model, MODELS[model](), on)
    methods = [method(work) for method in METHODS[options.transport]]
    errors = check(methods, work)
    warm = work.bytes < SMALL_BYTES
    with no_collection():
        times = measure(methods, options.seconds, warm, bar)
    head = {"model": model, "layers": len(work.shapes), "parameters": numel(work.shapes), "model_bytes": work.bytes}
    world = {"transport": options.transport, "ranks": on.size, "hosts": on.hosts, "warm": warm, "passes": times.size(1)}
    return {**head, **world, "rows": round_report.figures(methods, times, errors)}


def run(options: argparse.Namespace, on: ranks.Ranks) -> list[dict[str, Any]]:
    """The cells of all models; rank 0 prints each model's table when it is done."""
    cells = []
    for model in options.models:
        with tqdm(total=options.seconds, desc=f"{model}, {on.size} ranks", disable=on.rank != 0, leave=False,
                  file=sys.stdout, mininterval=2, bar_format="{desc} |{bar:30}| {n:.3g} of {total:.3g} s{postfix}"
                  ) as bar:  # fmt: skip
            cells.append(bench(model, on, options, bar))
        if on.rank == 0:
            print(round_report.table(cells[-1]), flush=True)
    return cells


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; what cannot be run is refused here."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.round", description=summary, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--models", nargs="+", default=["resnet20", "tiny500", "wrn28_10"], choices=MODELS, metavar="MODEL",
        help=f"of {', '.join(MODELS)} (default: resnet20 tiny500 wrn28_10, which takes 2.3 GB a rank)")  # fmt: skip
    add("--transport", default="horovod", choices=METHODS, help="what the ranks were started by (default: %(default)s)")
    add("--seconds", type=float, default=20.0, help="for each model (default: %(default)s)")
    add("--json", type=Path, help="rank 0 writes all figures there")
    options = parser.parse_args(arguments)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, and writes JSON where asked; every rank calls it."""
    options = parse(arguments)
    described = ranks.environment()
    with ranks.started(options.transport) as on:
        if on.size < 2:
            sys.exit("a round needs 2 ranks or more: horovodrun -np 2 -H localhost:2 python -m benchmarks.round")
        cells = run(options, on)
    if options.json is not None and on.rank == 0:
        options.json.write_text(
            json.dumps({"runs": [{**described, "seconds": options.seconds, "cells": cells}]}, indent=1) + "\n"
        )
        print(f"All figures: {options.json}")


if __name__ == "__main__":
    main()
