"""Wall time to 97 % on the handwritten digits: the network of examples/digits.py under gradient and model averaging."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

import grawa_hvd
from examples.digits import Data, Net, accuracy, evaluation

TARGET = 0.97
BATCH, RATE, MOMENTUM = 32, 0.03, 0.9
LOOK_EVERY, MOST_STEPS = 16, 512
# (τ, outer momentum); τ = 0: gradients are averaged, every step.
METHODS = ((0, 0.0), (4, 0.0), (16, 0.0), (16, 0.7))


def batches(data: Data, seed: int) -> Iterator[Tensor]:
    """This rank's images, shuffled anew for each pass over them."""
    order = torch.Generator().manual_seed(1000 * seed + hvd.rank())
    while True:
        yield from torch.randperm(len(data.images), generator=order).split(BATCH)


def name_of(period: int, outer_momentum: float) -> str:
    """Of a row."""
    if not period:
        return "hvd.DistributedOptimizer"
    return f"LGRAWA τ = {period}" + (f", outer momentum {outer_momentum}" if outer_momentum else "")


def race(data: Data, period: int, outer_momentum: float, seed: int) -> dict[str, Any]:
    """Train until the mean of the workers has the target accuracy; a collective.

    Returns:
        The longest time over the ranks, looks at the test set left out, and the steps; None where it was not reached.
    """
    torch.manual_seed(seed)
    model = Net(data)
    plain = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    names = [(f"race.{name}", parameter) for name, parameter in model.named_parameters()]
    optimizer: Any = (
        grawa_hvd.DistributedGrawaOptimizer(
            plain, names, averaging="lgrawa", period=period, outer_momentum=outer_momentum
        )
        if period
        else hvd.DistributedOptimizer(plain, names)
    )
    stream, seconds = batches(data, seed), 0.0
    for step in range(LOOK_EVERY, MOST_STEPS + 1, LOOK_EVERY):
        dist.barrier()
        start = time.perf_counter()
        for _, batch in zip(range(LOOK_EVERY), stream, strict=False):
            optimizer.zero_grad()
            functional.cross_entropy(model(data.images[batch]), data.labels[batch]).backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        with evaluation(optimizer):
            state = torch.tensor([accuracy(model, data), seconds], dtype=torch.float64)
        # The models are the same to rounding only: all must agree whether to go on.
        dist.all_reduce(state, op=dist.ReduceOp.MAX)
        if state[0] >= TARGET:
            return {"steps": step, "seconds": float(state[1])}
    return {"steps": None, "seconds": None}


def races(data: Data, seeds: int, tell: bool) -> list[dict[str, Any]]:
    """All methods from each seed, one after the other; a collective."""
    found: dict[str, list[dict[str, Any]]] = {name_of(*method): [] for method in METHODS}
    for seed in range(seeds):
        for method in METHODS:
            runs = found[name_of(*method)]
            runs.append(race(data, *method, seed))
            if tell:
                print(f"  digits, seed {seed}, {name_of(*method)}: {runs[-1]}", flush=True)
    return [summary(name, runs) for name, runs in found.items()]


def summary(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one method: medians over the seeds that got there, and how many did."""
    times = [run["seconds"] for run in runs if run["seconds"] is not None]
    steps = [run["steps"] for run in runs if run["steps"] is not None]
    return {
        "name": name,
        "seconds": statistics.median(times) if times else None,
        "steps": statistics.median(steps) if steps else None,
        "reached": len(times),
        "seeds": len(runs),
        "runs": runs,
    }
