"""Microbenchmark of the kernels: `python -m benchmarks.kernels`, beside PyTorch's own and the limit set by memory.

Bytes that must move, B = the bytes of the parameters, and so the floor of each operation's time:
- norms: B (read g) at the bandwidth of a plain sum of B bytes;
- pack: 2 B (read x, write out) at the bandwidth of a plain copy;
- blend: 3 B (read x, read c, write x) at the bandwidth of a plain copy;
- sgd_step: 6 B (read x, g, c, momentum; write x, momentum), adamw_step: 8 B (one moment more), likewise.
GB/s are always these bytes over the time, so a way that moves more of them (a temporary, a write that fetches the line
first) shows fewer. "Share" is GB/s over the limit's, measured beside it.

In a cell (a model, an operation, a number of threads) every way is first checked against float64 arithmetic, then all
ways are called in turn, one call each, round after round: what disturbs the machine disturbs all. The peers get
prepared lists of gradients, views and Python scalars; LayerTable looks up `.grad` itself and reads its weights from a
device tensor.

On CUDA there are three times. "Call": the stream is empty before it, and the time is that between two events around
it, so what the host does first counts too. "Device": the time of one of many calls in a row that were queued while the
device slept, so that it never waits for the host. "Host": what it takes to queue one of them. Shares and GB/s on CUDA
are of the device's time.

Models under 1/8 of the last-level cache stay in it, as gradients fresh from the backward pass do: before each timed
call the same call is made untimed, so that no way pays for what its neighbour evicted. Larger models rotate over sets
of buffers that hold at least 4 × the cache, the next set at every call: their bytes come from memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import report
from benchmarks.models import MODELS, numel
from benchmarks.operations import OPERATIONS, Operation, Row
from benchmarks.timing import no_collection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
WARM_UP = 2
FEWEST_ROUNDS = 9
MOST_ROUNDS = 20_000
# In a row on CUDA: calls, fewer where they take more than so many microseconds together, and how often.
QUEUED = 20
FEWEST_QUEUED = 4
QUEUED_MICROSECONDS = 20_000
QUEUED_ROUNDS = 7
CYCLES_A_MICROSECOND = 2000


class WrongResultError(RuntimeError):
    """A kernel or a peer computes something else: its time means nothing."""


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache of the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(size.read_text().strip().rstrip("K")) * 1024 for size in sizes), default=32 << 20)


def buffer_sets(size: int, cache: int) -> int:
    """Number of sets of buffers of `size` bytes to rotate over; 0 if one stays in the cache."""
    return 0 if size < cache / 8 else -(-4 * cache // size)


def tolerance(row: Row, dtype: torch.dtype) -> float:
    """Largest relative error that passes: rounding of the dtype, and for a peer that of its long float32 sums."""
    # torch 2.13's _foreach_norm is off by 1.4e-3 over 25 million elements on one CPU thread.
    is_rough = row.role == "limit" or (row.role == "peer" and dtype != torch.float64)
    return max(8 * torch.finfo(dtype).eps, 1e-2 if is_rough else 1e-12)


def check(name: str, operation: Operation, dtype: torch.dtype) -> dict[str, float]:
    """Calls every row once.

    Returns:
        The relative error of each row.

    Raises:
        WrongResultError: if a result is not that of float64 arithmetic up to rounding.
    """
    errors = {}
    for row in operation.rows():
        error, allowed = operation.error(row), tolerance(row, dtype)
        if not error <= allowed:  # NaN must not pass
            raise WrongResultError(f"{name}, {row.name}: relative error {error:.2g}, allowed {allowed:.2g}")
        errors[row.name] = error
    return errors


def clock(device: torch.device) -> Callable[[Callable[[], Any]], float]:
    """A function that calls another and returns the microseconds that it took on the device."""

    def on_cpu(call: Callable[[], Any]) -> float:
        begin = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - begin) / 1e3

    def on_cuda(call: Callable[[], Any]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e3

    return on_cuda if device.type == "cuda" else on_cpu


def measure(sets: list[list[Row]], device: torch.device, seconds: float, resident: bool) -> list[list[float]]:
    """Times all rows in turn, on the next set of buffers at every call.

    Args:
        sets: the same rows over each set of buffers.
        device: where they run.
        seconds: when to stop, once every row has been timed 5 times.
        resident: whether the buffers are to be in the cache: calls every row once more before it is timed.

    Returns:
        Microseconds of each call, [rows, rounds].
    """
    timed, calls = clock(device), 0
    times: list[list[float]] = [[] for _ in sets[0]]
    begin = 0.0
    for round_ in range(-WARM_UP, MOST_ROUNDS):
        if round_ == 0:
            begin = time.perf_counter()
        for index, samples in enumerate(times):
            call = sets[calls % len(sets)][index].call
            if resident:
                call()
            elapsed = timed(call)
            calls += 1
            if round_ >= 0:
                samples.append(elapsed)
        if round_ + 1 >= FEWEST_ROUNDS and time.perf_counter() - begin >= seconds:
            break
    return times


@dataclass(frozen=True)
class Queued:
    """Microseconds of a call on CUDA among many in a row, [rows, rounds]: on the device, and for the host to queue."""

    device: list[list[float]]
    host: list[list[float]]


def measure_queued(sets: list[list[Row]], calls: Sequence[float]) -> Queued:
    """Times the calls of each row on CUDA without the host.

    Args:
        sets: the same rows over each set of buffers.
        calls: microseconds of one call of each row, by itself: how long the device must sleep until all are queued.
    """
    result = Queued([[] for _ in calls], [[] for _ in calls])
    for _ in range(QUEUED_ROUNDS):
        for index, microseconds in enumerate(calls):
            count = max(FEWEST_QUEUED, min(QUEUED, int(QUEUED_MICROSECONDS / microseconds)))
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(int(CYCLES_A_MICROSECOND * (count + 5) * microseconds))
            begin.record()
            start = time.perf_counter_ns()
            for number in range(count):
                sets[number % len(sets)][index].call()
            result.host[index].append((time.perf_counter_ns() - start) / 1e3 / count)
            end.record()
            end.synchronize()
            result.device[index].append(float(begin.elapsed_time(end)) * 1e3 / count)
    return result


def figures(
    rows: list[Row], times: list[list[float]], errors: dict[str, float], queued: Queued | None
) -> list[dict[str, Any]]:
    """Medians, quartiles, bandwidth, speed-up over the best peer and share of the limit, of each row."""
    quartiles = [statistics.quantiles(samples, n=4) for samples in times]
    decisive = quartiles if queued is None else [statistics.quantiles(samples, n=4) for samples in queued.device]
    rates = [row.bytes / middle / 1e3 for row, (_, middle, _) in zip(rows, decisive, strict=True)]
    limit = next(rate for row, rate in zip(rows, rates, strict=True) if row.role == "limit")
    best = min(middle for row, (_, middle, _) in zip(rows, quartiles, strict=True) if row.role == "peer")
    found = [
        {
            "name": row.name,
            "role": row.role,
            "bytes": row.bytes,
            "microseconds": _named(quarter),
            "gigabytes_per_second": rate,
            "speedup_over_best_peer": best / quarter[1],
            "share_of_limit": rate / limit,
            "relative_error": errors[row.name],
        }
        for row, quarter, rate in zip(rows, quartiles, rates, strict=True)
    ]
    if queued is not None:
        peer = min(middle for row, (_, middle, _) in zip(rows, decisive, strict=True) if row.role == "peer")
        for row, quarter, host in zip(found, decisive, queued.host, strict=True):
            row["device_microseconds"], row["host_microseconds"] = _named(quarter), statistics.median(host)
            row["device_speedup_over_best_peer"] = peer / quarter[1]
    return found


def _named(quartiles: list[float]) -> dict[str, float]:
    return dict(zip(("lower_quartile", "median", "upper_quartile"), quartiles, strict=True))


def bench(model: str, name: str, options: argparse.Namespace, bar: tqdm) -> list[dict[str, Any]]:
    """The cells of one operation on one model, one for each number of threads."""
    shapes, dtype, device = MODELS[model](), DTYPES[options.dtype], torch.device(options.device)
    count = buffer_sets(numel(shapes) * dtype.itemsize, cache_bytes(device))
    sets = [OPERATIONS[name](shapes, dtype, device) for _ in range(max(count, 1))]
    rows = [operation.rows() for operation in sets]
    cells = []
    for threads in options.threads:
        bar.set_description(f"{model}, {name}, {threads} thread{'s' * (threads > 1)}")
        torch.set_num_threads(threads)
        errors = check(name, sets[0], dtype)
        with no_collection():
            times = measure(rows, device, options.seconds, resident=count == 0)
            calls = [statistics.median(samples) for samples in times]
            queued = measure_queued(rows, calls) if device.type == "cuda" else None
        head = {"model": model, "layers": len(shapes), "parameters": numel(shapes), "operation": name}
        cell = {**head, "threads": threads, "buffer_sets": len(sets), "resident": count == 0, "rounds": len(times[0])}
        cells.append({**cell, "rows": figures(rows[0], times, errors, queued)})
        bar.update()
    return cells


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cells of all models; prints each model's table when it is done."""
    cells: list[dict[str, Any]] = []
    before = torch.get_num_threads()
    total = len(options.models) * len(OPERATIONS) * len(options.threads)
    try:
        with torch.no_grad(), tqdm(total=total, leave=False) as bar:
            for model in options.models:
                mine = [cell for name in OPERATIONS for cell in bench(model, name, options, bar)]
                tqdm.write(report.table(mine))
                cells += mine
    finally:
        torch.set_num_threads(before)
    return cells


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; what cannot be run is refused here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: %(default)s)")
    add("--dtype", default="float32", choices=DTYPES, help="of gradients and parameters (default: %(default)s)")
    add("--models", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    add("--threads", nargs="+", type=int, metavar="N", help="numbers of CPU threads (default: 1 and all)")
    add("--seconds", type=float, default=2.0, help="for each model, operation and thread count (default: %(default)s)")
    add("--json", type=Path, help="write all figures there")
    add("--plot", type=Path, help="write the picture there: bandwidth over bytes")
    options = parser.parse_args(arguments)
    if options.threads is None:
        options.threads = sorted({1, torch.get_num_threads()}) if options.device == "cpu" else [1]
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available to this torch")
    if min(options.threads) < 1:
        parser.error(f"--threads {min(options.threads)}: at least 1 is needed")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, and writes JSON and a plot where asked."""
    options = parse(arguments)
    cells = run(options)
    results = {**report.environment(options), "cache_bytes": cache_bytes(torch.device(options.device)), "cells": cells}
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
        print(f"All figures: {options.json}")
    if options.plot is not None:
        report.plot(results, options.plot)
        print(f"Bandwidth over bytes: {options.plot}")


if __name__ == "__main__":
    main()
