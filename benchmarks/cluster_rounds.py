"""Rounds and all-reduces on their own, in the launch of `benchmarks.cluster`, for its goals and for the cost model."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import horovod.torch as hvd
import torch
import torch.distributed as dist
from tqdm import tqdm

import grawa_hvd
from benchmarks import round as bench_round
from benchmarks.models import Shape, numel
from benchmarks.round_methods import PULL, BareAllreduce, LgrawaRound, Method, UniformRound, Workload
from benchmarks.round_report import OVER_LIMIT, quartiles
from benchmarks.timing import no_collection

SMALLEST_PROBE = 1 << 10
PROBE_CALLS = 5
MESSAGES = 4


class InMessages(LgrawaRound):
    """The same round in several messages: one is packed while another travels and a third is blended."""

    name: ClassVar[str] = f"grawa_hvd LGRAWA, {MESSAGES} messages"

    def __init__(self, work: Workload) -> None:
        super().__init__(work)
        self._optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(self._parameters, lr=0.0),
            averaging=self.averaging,
            period=1,
            pull=PULL,
            proximity=0.0,
            groups=MESSAGES,
        )

    @property
    def rows(self) -> list[str]:
        return [self.name]

    def timed(self) -> list[float]:
        return super().timed()[:1]


def rounds(layers: int, seconds: float) -> dict[str, Any]:
    """Our round beside a bare allreduce of as many bytes, as `benchmarks.round` times them; a collective.

    Args:
        layers: of the model, 1,049,600 parameters each.
        seconds: after which no further pass begins.
    """
    shapes: list[Shape] = [(1024, 1024), (1024,)] * layers
    work = Workload("cluster", shapes)
    kinds: tuple[type[Method], ...] = (BareAllreduce, UniformRound, LgrawaRound, InMessages)
    methods = [kind(work) for kind in kinds]
    bench_round.check(methods, work)
    with no_collection(), tqdm(disable=True) as bar:
        times = bench_round.measure(methods, seconds, False, bar)
    names = [name for method in methods for name in method.rows]
    return {
        "parameters": numel(shapes),
        "passes": times.size(1),
        "rows": [{"name": name, "seconds": quartiles(taken), OVER_LIMIT: quartiles(taken / times[0])}
                 for name, taken in zip(names, times, strict=True)],
    }  # fmt: skip


def probes(largest: int) -> list[dict[str, Any]]:
    """Bare all-reduces from 1 KiB to `largest` bytes, each 32 times the one before; a collective."""
    found, size = [], SMALLEST_PROBE
    while size < 32 * largest:
        found.append(_probe(min(size, largest)))
        size *= 32
    return found


def _probe(size: int) -> dict[str, Any]:
    tensor, times = torch.zeros(size // 4), []
    for _ in range(PROBE_CALLS + 1):
        dist.barrier()
        start = time.perf_counter()
        hvd.allreduce_(tensor, op=hvd.Sum, name=f"bench.probe.{size}")
        times.append(time.perf_counter() - start)
    longest = torch.tensor(times, dtype=torch.float64)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    # The first call was Horovod's first sight of the name.
    return {"bytes": size, "seconds": quartiles(longest[1:])}
