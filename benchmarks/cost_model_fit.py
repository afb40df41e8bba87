"""The constants of `grawa_hvd.cost_model`, by least squares from what the other benchmarks have measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.cluster_report import place
from benchmarks.round_methods import BareAllreduce, LgrawaRound
from grawa_hvd.cost_model import Cluster, Constants, Method, step_seconds
from grawa_hvd.plan import bits

NAMES = tuple(field.name for field in fields(Constants))
ALONE_KINDS = {BareAllreduce.name: Method("allreduce"), LgrawaRound.name: Method("round")}
# Where the search begins: 50 µs, 1 GB/s, the nominal rate, 10 GB/s for the rest.
START = Constants(5e-5, 1e-9, 1.0, 1e-10, 1e-10, 1e-10)


@dataclass(frozen=True)
class Sample:
    """One measured cell.

    Attributes:
        place: ranks, hosts, rate and model, for a table.
        name: of the method.
        method: what the model has to know of it.
        size: bytes of the model in float32.
        compute: seconds of a step without communication, measured in the same run.
        cluster: where.
        seconds: of a step, measured.
    """

    place: str
    name: str
    method: Method
    size: float
    compute: float
    cluster: Cluster
    seconds: float

    def predicted(self, constants: Constants) -> float:
        """Seconds of a step, by the model."""
        return step_seconds(self.method, self.size, self.compute, constants, self.cluster)


def samples(results: dict[str, Any]) -> Iterator[Sample]:
    """Of what `benchmarks.round` or `benchmarks.cluster` has written."""
    for run in results.get("runs", []):
        for cell in run["cells"]:
            if cell["transport"] == "horovod":  # which the cluster's steps use too
                yield from _of_round(cell, run["processors"])
    for cell in results.get("cells", []):
        yield from _of_cluster(cell)


def _of_round(cell: dict[str, Any], processors: int) -> Iterator[Sample]:
    """All-reduces and rounds by themselves."""
    ranks, hosts = cell["ranks"], cell["hosts"]
    cluster = Cluster(ranks, ranks // hosts, processors=processors)
    where = f"{ranks} ranks, loopback, {cell['model']}"
    for row in cell["rows"]:
        if row["name"] in ALONE_KINDS:
            kind, seconds = ALONE_KINDS[row["name"]], row["seconds"]["median"]
            yield Sample(where, row["name"], kind, cell["model_bytes"], 0.0, cluster, seconds)


def _of_cluster(cell: dict[str, Any]) -> Iterator[Sample]:
    """Training steps of all methods, and the all-reduces of several sizes."""
    ranks = cell["ranks"]
    cluster = Cluster(ranks, ranks // cell["hosts"], bits(cell["rate"]), processors=cell["processors"])
    size, where = 4 * cell["parameters"], place(cell)
    by_name = {row["name"]: row["seconds_per_step"]["median"] for row in cell["rows"]}
    compute = next(by_name[row["name"]] for row in cell["rows"] if row["method"]["kind"] == "alone")
    for row in cell["rows"]:
        if row["method"]["kind"] != "alone":
            yield Sample(where, row["name"], Method(**row["method"]), size, compute, cluster, by_name[row["name"]])
    for row in cell.get("round", {}).get("rows", []):
        if row["name"] in ALONE_KINDS:
            kind, seconds = ALONE_KINDS[row["name"]], row["seconds"]["median"]
            yield Sample(where, row["name"], kind, 4 * cell["round"]["parameters"], 0.0, cluster, seconds)
    for probe in cell["allreduce"]:
        name, seconds = f"allreduce of {probe['bytes']:,} bytes", probe["seconds"]["median"]
        yield Sample(where, name, Method("allreduce"), probe["bytes"], 0.0, cluster, seconds)


def fit(measured: list[Sample]) -> Constants:
    """The constants that make the squared logarithms of predicted over measured times least.

    Logarithms, so that a cell of milliseconds counts as much as one of seconds; the constants are searched by theirs
    too, which keeps them positive. A constant on which no sample depends stays where the search begins.

    Args:
        measured: at least as many samples as there are constants.

    Raises:
        ValueError: if they are fewer.
    """
    if len(measured) < len(NAMES):
        raise ValueError(f"{len(NAMES)} constants need as many samples or more, but there are {len(measured)}")
    start = np.log([getattr(START, name) for name in NAMES])

    def errors(logarithms: Any) -> Any:
        constants = Constants(*np.exp(logarithms))
        return [math.log(sample.predicted(constants) / sample.seconds) for sample in measured]

    # Within 10 orders of magnitude: what is not seen in the samples may go to nearly 0, but not out of range.
    found = least_squares(errors, start, bounds=(start - 23, start + 23))
    return Constants(*(float(value) for value in np.exp(found.x)))


def relative_errors(measured: list[Sample], constants: Constants) -> list[float]:
    """Predicted over measured − 1, sample by sample."""
    return [sample.predicted(constants) / sample.seconds - 1 for sample in measured]
