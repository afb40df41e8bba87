"""What communication costs: rounds and seconds of the arms of `experiments.convergence`, and the share that computes.

The protocol is in experiments/README.md. Nothing is trained here. Rounds are those of convergence.json; seconds are
**modelled** (`experiments.papers_cost`), or **measured** by the benchmarks (cluster.json, round_loopback.json).

    python -m experiments.communication
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments import common
from experiments.communication_plot import plot
from experiments.convergence import chosen
from experiments.convergence_arms import ARMS, BATCH, Setting
from experiments.papers_cost import COMPUTE, SIZE, cost_of
from grawa_hvd.cost_model import Cluster, Constants, Method, step_seconds
from grawa_hvd.hardware import FITTED, Gpus
from grawa_hvd.plan import bits

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
PERIODS = [2**power for power in range(10)]
RATES = ("100mbit", "1gbit", "10gbit", "25gbit", "100gbit")
WORKERS = 8  # of the modelled shares, a host each
ROUNDS = ("bare hvd.allreduce_", "grawa_hvd uniform", "grawa_hvd LGRAWA", "authors: layer by layer")
Found = Mapping[str, Any]


def costs(tuned: Found, samples: int, sizes: list[int]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rounds and modelled seconds of each arm, its "best" setting, and "equal" ones: period 16, batches of 16."""
    for size in sizes:
        for name, arm in ARMS.items():
            setting, _ = chosen(tuned, name, size)
            equal: Setting = {**setting, "period": 16} if arm.averages == "models" else {"batch": BATCH}
            for title, given in (("best", setting), ("equal", equal)):
                cost = cost_of(arm, given, size, samples)
                passes = cost.rounds * COMPUTE if arm.scores == "fresh" else 0.0
                yield f"{name}, {size} workers, {title}", {
                    "period": given.get("period", 1), "rounds": cost.rounds, "communication": cost.communication,
                    "passes": passes, "each": (cost.communication + passes) / max(1, cost.rounds),
                    "seconds": cost.seconds,
                }  # fmt: skip


def measured_rounds(results: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """Milliseconds of a round over loopback, medians."""
    for cell in (cell for run in results["runs"] for cell in run["cells"]):
        rows = {row["name"]: row["seconds"]["median"] for row in cell["rows"]}
        key = f"round, measured: {cell['model']}, {cell['transport']}, {cell['ranks']} ranks"
        yield key, {name: round(1e3 * rows[name], 3) for name in ROUNDS if name in rows}


def measured_shares(results: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """The share of a step that is computing, on 12 ranks of 3 hosts; and what the cost model says of it.

    Of period 1 it is gradient averaging.
    """
    for cell in results["cells"]:
        compute = next(row["seconds_per_step"]["median"] for row in cell["rows"] if row["method"]["kind"] == "alone")
        cluster = Cluster(
            cell["ranks"], cell["ranks"] // cell["hosts"], bits(cell["rate"]), processors=cell["processors"]
        )
        size, found = 4 * cell["parameters"], {}
        for row in cell["rows"]:
            method = Method(**row["method"])
            if row["name"].split(" τ = ")[-1].isdigit() or row["name"] == "hvd.DistributedOptimizer":
                found[f"{method.period}"] = round(compute / row["seconds_per_step"]["median"], 4)
        model = {f"{p}": _share(p, size, compute, FITTED, cluster) for p in PERIODS}
        yield f"share computing, {cell['rate']}", {"measured": found, "modelled": model}


def modelled_shares() -> Iterator[tuple[str, dict[str, float]]]:
    """The same for GPUs, by the assumptions of `papers_cost`."""
    for rate in RATES:
        cluster = Gpus().cluster(WORKERS, 1, bits(rate) / 1e9)
        shares = {f"{p}": _share(p, SIZE, COMPUTE, Gpus().constants(), cluster) for p in PERIODS}
        yield f"share computing, GPUs, modelled, {rate}", shares


def _share(period: int, size: float, compute: float, constants: Constants, cluster: Cluster) -> float:
    method = Method("models", period) if period > 1 else Method("gradients")
    return round(compute / step_seconds(method, size, compute, constants, cluster), 4)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.communication", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    return common.parsed_after_convergence(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Count, model, print, draw."""
    options = parse(arguments)
    content = json.loads((options.out / "convergence.json").read_text())
    sizes = sorted({int(key.split(", ")[-1].split()[0]) for key in content["runs"] if key.startswith("control of ")})
    cluster, loopback = (
        json.loads((BENCHMARKS / f"{name}.json").read_text()) for name in ("cluster", "round_loopback")
    )
    summary = {
        **dict(costs(content["runs"], content["settings"]["samples"], sizes)), **dict(measured_rounds(loopback)),
        **dict(measured_shares(cluster)), **dict(modelled_shares()),
    }  # fmt: skip
    common.write(options.out / "communication.json", {"settings": content["settings"], "summary": summary})
    for key, value in summary.items():
        print(f"{key}: {value}")
    plot(summary, sizes, options.out / "communication.png")


if __name__ == "__main__":
    main()
