"""The cost model: its fit finds the constants that samples were made with, and its predictions order as they must."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cost_model_report
from benchmarks.cost_model_fit import NAMES, Sample, fit, relative_errors, samples
from grawa_hvd.cost_model import (
    Cluster,
    Collective,
    Constants,
    Method,
    allreduce,
    communication,
    exposed,
    pause,
    period_for,
    ring,
    step_seconds,
    tree,
)

TRUE = Constants(latency=2e-4, software=3e-10, link=1.1, round=4e-10, half=7e-10, local=1e-10)
THREE_HOSTS = Cluster(12, 4, 1e9, processors=2)
SIZE, COMPUTE = 12e6, 0.05
METHODS = [
    Method("gradients"), Method("gradients", half=True), Method("models", 4), Method("models", 16),
    Method("models", 16, local_period=4), Method("models", 16, half=True), Method("models", 16, overlap=8),
    Method("allreduce"), Method("round"),
]  # fmt: skip


def made(constants: Constants) -> list[Sample]:
    """Samples without noise: three rates, three sizes."""
    found = []
    for bandwidth in (math.inf, 1e9, 1e8):
        cluster = replace(THREE_HOSTS, bandwidth=bandwidth)
        for size in (1e3, 1e6, SIZE):
            for method in METHODS:
                seconds = step_seconds(method, size, COMPUTE, constants, cluster)
                found.append(Sample("somewhere", method.kind, method, size, COMPUTE, cluster, seconds))
    return found


def test_the_fit_recovers_what_samples_were_made_with() -> None:
    found = fit(made(TRUE))
    for name in NAMES:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    assert max(map(abs, relative_errors(made(TRUE), found))) < 1e-4


def test_noise_of_5_percent_leaves_the_link_within_5_percent() -> None:
    noisy = [replace(sample, seconds=sample.seconds * (1 + 0.05 * (-1) ** number))
             for number, sample in enumerate(made(TRUE))]  # fmt: skip
    assert fit(noisy).link == pytest.approx(TRUE.link, rel=0.05)


def test_fewer_samples_than_constants_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{len(NAMES)} constants.*there are 2"):
        fit(made(TRUE)[:2])


def test_the_allreduce_by_hand() -> None:
    found = allreduce(1000, 4, 8e3, Constants(latency=1.0, software=0.01, link=2.0), Cluster(4, 1))
    # 6 hops; each rank sends 2 · 3/4 · 1000 bytes over a link of 1000 bytes a second at half its efficiency: 3 s,
    # behind the 15 s of the processor.
    assert found == Collective(host=15.0, away=6.0)
    quick = allreduce(1000, 4, 8e3, Constants(latency=1.0, software=0.001, link=2.0), Cluster(4, 1))
    assert quick == Collective(host=1.5, away=6.0 + 3.0 - 1.5)
    shared = allreduce(1000, 4, math.inf, Constants(1.0, 0.01), Cluster(4, 1, processors=2))
    assert shared == Collective(host=30.0, away=12.0)


def test_steps_by_hand() -> None:
    constants = Constants(latency=0.0, software=0.0, link=1.0)
    cluster = Cluster(2, 1, 8.0)  # 1 byte a second; 2 ranks send as many bytes as the model has
    assert step_seconds(Method("alone"), 16, 3.0, constants, cluster) == 3.0
    assert step_seconds(Method("gradients"), 16, 3.0, constants, cluster) == 19.0
    assert step_seconds(Method("gradients", half=True), 16, 3.0, constants, cluster) == 11.0
    assert step_seconds(Method("models", 4), 16, 3.0, constants, cluster) == 7.0
    assert step_seconds(Method("models", 4, overlap=2), 16, 3.0, constants, cluster) == 5.5
    assert communication(Method("models", 4), 16, 3.0, constants, cluster) == pytest.approx(4 / 7)
    slower = replace(constants, local=0.125)
    assert step_seconds(Method("models", 4), 16, 3.0, slower, cluster) == 9.0
    assert communication(Method("models", 4), 16, 3.0, slower, cluster) == pytest.approx(4 / 9)
    assert step_seconds(Method("round"), 16, 3.0, slower, cluster) == 16.0


def test_fragments_send_as_many_bytes_in_shorter_pauses() -> None:
    constants = Constants(latency=0.25, software=0.0, link=1.0)
    cluster = Cluster(2, 1, 8.0)  # 1 byte a second; 2 hops of 0.25 s, for the scores and for the sum
    whole, cut = (Method("models", 8, fragments=fragments) for fragments in (1, 4))
    assert [pause(method, 16, 3.0, constants, cluster) for method in (whole, cut)] == [17.0, 5.0]
    assert [step_seconds(method, 16, 3.0, constants, cluster) for method in (whole, cut)] == [3 + 17 / 8, 3 + 20 / 8]


def test_overlap_hides_what_is_away_from_the_processor_and_no_more() -> None:
    collective = Collective(host=2.0, away=5.0)
    assert [exposed(Method("models", 16, overlap=k), collective, 1.0) for k in (0, 3, 5, 9)] == [7.0, 4.0, 2.0, 2.0]


def test_rounds_within_hosts_leave_the_links_alone() -> None:
    slow = replace(THREE_HOSTS, bandwidth=1e6)
    nested, flat = (step_seconds(Method("models", 16, local_period=part), SIZE, COMPUTE, TRUE, slow) for part in (4, 0))
    among = allreduce(SIZE, 4, math.inf, TRUE, slow).seconds
    extra = among + TRUE.round * SIZE * slow.share + TRUE.latency * ring(12) * slow.share
    assert nested - flat == pytest.approx(3 * extra / 16)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_takes_longer_with_more_bytes_more_ranks_and_slower_links(method: Method) -> None:
    def seconds(size: float = SIZE, **changes: Any) -> float:
        return step_seconds(method, size, COMPUTE, TRUE, replace(THREE_HOSTS, **changes))

    assert seconds() < seconds(size=2 * SIZE)
    assert seconds() < seconds(ranks=24)
    assert seconds(bandwidth=math.inf) <= seconds() <= seconds(bandwidth=1e8)


def test_a_longer_period_costs_less() -> None:
    times = [step_seconds(Method("models", period), SIZE, COMPUTE, TRUE, THREE_HOSTS) for period in (1, 2, 4, 64)]
    assert times == sorted(times, reverse=True)
    assert times[-1] > COMPUTE


def test_the_period_is_the_smallest_that_holds() -> None:
    for bandwidth in (1e7, 1e8, 1e9, 1e11):
        cluster = Cluster(64, 8, bandwidth)
        period = period_for(0.05, SIZE, COMPUTE, TRUE, cluster)
        assert communication(Method("models", period), SIZE, COMPUTE, TRUE, cluster) <= 0.05
        assert period == 1 or communication(Method("models", period - 1), SIZE, COMPUTE, TRUE, cluster) > 0.05


def test_hops_of_ring_and_tree() -> None:
    assert [(ring(ranks), tree(ranks)) for ranks in (2, 12, 4096)] == [(2, 2), (22, 8), (8190, 24)]


def test_both_kinds_of_results_become_samples() -> None:
    quartiles = {"lower_quartile": 1.0, "median": 2.0, "upper_quartile": 3.0}
    methods = {"no communication": {"kind": "alone"}, "ours": {"kind": "models", "period": 4, "local_period": 0}}
    cell = {
        "ranks": 12, "hosts": 3, "rate": "1gbit", "processors": 2, "parameters": 10,
        "rows": [{"name": name, "method": method, "seconds_per_step": quartiles} for name, method in methods.items()],
        "allreduce": [{"bytes": 1024, "seconds": quartiles}],
    }  # fmt: skip
    ours, probe = samples({"cells": [cell]})
    assert (ours.method, ours.size, ours.compute, ours.cluster.bandwidth) == (Method("models", 4), 40, 2.0, 1e9)
    assert (probe.method, probe.size, probe.cluster.hosts) == (Method("allreduce"), 1024, 3)
    rows = [{"name": name, "seconds": quartiles} for name in ("bare hvd.allreduce_", "grawa_hvd LGRAWA", "another")]
    round_cell = {"ranks": 4, "hosts": 1, "model": "m", "model_bytes": 8, "transport": "horovod", "rows": rows}
    bare, whole = samples({"runs": [{"processors": 2, "cells": [round_cell, {**round_cell, "transport": "torch"}]}]})
    assert (bare.method, whole.method, whole.compute) == (Method("allreduce"), Method("round"), 0.0)
    assert bare.cluster.share == 2


def test_parts_are_written_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = (mark.format(name="errors") for mark in cost_model_report.MARKS)
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    cost_model_report.write(page, {"errors": "a \\1 table"})
    cost_model_report.write(page, {"errors": "a \\1 table"})
    assert page.read_text() == f"before\n{begin}\na \\1 table\n{end}\nafter\n"
    with pytest.raises(ValueError, match="periods"):
        cost_model_report.write(page, {"periods": ""})


def test_predictions_order_as_they_must() -> None:
    hardware = cost_model_report.Hardware()
    for parameters in cost_model_report.PARAMETERS:
        periods = [hardware.period(parameters, 256, 8, gigabits, 1.1) for gigabits in cost_model_report.GIGABITS]
        assert periods == sorted(periods, reverse=True)
        assert hardware.period(parameters, 256, 8, 1, 1.1, overlapped=True) <= periods[0]
