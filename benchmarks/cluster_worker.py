"""One rank of `benchmarks.cluster`: runs all methods in turn under one horovodrun, at the rate that the links have.

Each method trains in blocks of whole cycles (τ steps for ours), in an order that is drawn anew for each pass over the
methods. Ranks wait for each other, outside Horovod, around a block: its time is the longest over the ranks, and its
bytes are what the interfaces of all hosts have sent in it. Ratios are those of blocks within a pass.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks import cluster_digits, cluster_rounds, ranks
from benchmarks import round as bench_round
from benchmarks.cluster_methods import BATCH, NAMES, PARAMETERS_PER_UNIT, Models, Trainee, trainees
from benchmarks.cluster_report import figures
from benchmarks.cluster_wire import Wire, over_hosts
from benchmarks.timing import no_collection
from examples.digits import Data, load

FEWEST_PASSES = 3
IDLE_SECONDS = 2.0
TELL_EVERY = 5.0


def check(methods: list[Trainee]) -> None:
    """What was trained must be finite, not have diverged, and be the same on all ranks; a collective.

    Raises:
        WrongResultError: on every rank, if it is not so on one.
    """
    for method in methods:
        fault = method.fault()
        for tensor in method.shared():
            least, most = tensor.clone(), tensor.clone()
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
            if not least.equal(most):  # NaN neither
                fault = "ranks hold different models"
        bad = torch.tensor(int(bool(fault)))
        dist.all_reduce(bad)
        if bad:
            raise bench_round.WrongResultError(f"{method.name}: {fault or 'wrong on another rank'}")


def measure(methods: list[Trainee], wire: Wire, seconds: float) -> tuple[Tensor, Tensor]:
    """Train block by block until rank 0's clock says that it is enough; a collective.

    Returns:
        Seconds of each block, the longest over the ranks, float64 [methods, passes]; and the bytes sent by all hosts,
        int64, likewise.
    """
    order, begin, told, passes = random.Random(0), time.perf_counter(), 0.0, 0
    took: dict[str, list[float]] = {method.name: [] for method in methods}
    sent: dict[str, list[int]] = {method.name: [] for method in methods}
    while _agreed(passes < FEWEST_PASSES or time.perf_counter() - begin < seconds):
        for method in order.sample(methods, len(methods)):
            wire.start()
            took[method.name].append(method.block())
            sent[method.name].append(wire.sent())
        passes += 1
        if hvd.rank() == 0 and time.perf_counter() > told + TELL_EVERY:
            told = time.perf_counter()
            print(f"  pass {passes}, {told - begin:.0f} of {seconds:.0f} s", flush=True)
    times = torch.tensor(list(took.values()), dtype=torch.float64)
    dist.all_reduce(times, op=dist.ReduceOp.MAX)
    return times, torch.tensor([over_hosts(blocks) for blocks in sent.values()])


def _agreed(more: bool) -> bool:
    """What rank 0 says."""
    flag = torch.tensor(int(more))
    dist.broadcast(flag, src=0)
    return bool(flag)


def warm_up(methods: list[Trainee]) -> None:
    """The first block of every method, untimed: it connects ranks, and the first round of a model is not compressed."""
    for method in methods:
        if isinstance(method, Models):
            method.align()
        method.block()
        if hvd.rank() == 0:
            print(f"  {method.name}: warm", flush=True)


def idle(wire: Wire) -> float:
    """Bytes a second of all hosts while no rank has anything to send: Horovod's ranks keep asking each other."""
    wire.start()
    time.sleep(IDLE_SECONDS)
    return over_hosts([wire.sent()])[0] / IDLE_SECONDS


def train(options: argparse.Namespace, data: Data, wire: Wire) -> dict[str, Any]:
    """Throughput and bytes of all methods; a collective."""
    methods = trainees(options.methods, data, options.width)
    warm_up(methods)
    quiet = idle(wire)
    with no_collection():
        times, sent = measure(methods, wire, options.seconds)
    check(methods)
    return {
        "parameters": sum(parameter.numel() for parameter in methods[0].model.parameters()),
        "tensors": len(list(methods[0].model.parameters())),
        "passes": times.size(1),
        "idle_bytes_per_second": quiet,
        "rows": figures(methods, BATCH * hvd.size(), times, sent),
    }


def run(options: argparse.Namespace, described: dict[str, Any]) -> dict[str, Any]:
    """All figures of one rate, behind the description of the machine; a collective."""
    data = load(None, hvd.rank(), hvd.size())
    cell = {
        **described,
        "seconds": options.seconds,
        "rate": options.rate,
        "ranks": hvd.size(),
        "hosts": hvd.cross_size(),
        "batch": BATCH,
        **train(options, data, Wire(options.interface)),
        "allreduce": cluster_rounds.probes(4 * PARAMETERS_PER_UNIT * options.width),
    }
    if options.round_layers:
        cell["round"] = cluster_rounds.rounds(options.round_layers, options.seconds / 4)
    if options.seeds:
        cell["digits"] = cluster_digits.races(data, options.seeds, hvd.rank() == 0)
    return cell


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of one rank."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster_worker", description=__doc__)
    add = parser.add_argument
    add("--rate", default="none", help="of the links, for the record (default: %(default)s)")
    add("--interface", default="eth0", help="whose counters are read (default: %(default)s)")
    add("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="METHOD")
    add("--width", type=int, default=40_000, help="of the hidden layer; 75 parameters a unit (default: %(default)s)")
    add("--seconds", type=float, default=60.0, help="of throughput (default: %(default)s)")
    add("--round-layers", type=int, default=0, help="of the model whose round is timed (default: none)")
    add("--seeds", type=int, default=0, help="of the time to 97 %% on digits (default: none)")
    add("--json", type=Path, required=True, help="rank 0 writes the figures there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and writes JSON; every rank calls it."""
    options = parse(arguments)
    described = ranks.environment()
    hvd.init()
    with ranks.torch_group():
        cell = run(options, described)
        dist.barrier()
    if hvd.rank() == 0:
        options.json.write_text(json.dumps(cell, indent=1) + "\n")


if __name__ == "__main__":
    main()
