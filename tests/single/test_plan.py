"""The plan against what was measured on the cluster, and the command."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.cost_model_fit import Sample, fit, relative_errors, samples
from grawa_hvd.cost_model import Cluster, Constants, Method, communication, local_seconds
from grawa_hvd.hardware import ERRORS, FITTED, Gpus
from grawa_hvd.plan import Choice, Job, bits, choices, count, report

ROOT = Path(__file__).resolve().parents[2]
JOB = Job(25_000_000, 0.2, Cluster(12, 4, 1e9))


@pytest.fixture(scope="module")
def measured() -> list[Sample]:
    """The cells of `make bench-cluster`."""
    return list(samples(json.loads((ROOT / "benchmarks" / "results" / "cluster.json").read_text())))


def chosen(job: Job, share: float = 0.05) -> dict[str, Choice]:
    """Choices by their arguments."""
    return {choice.arguments: choice for choice in choices(job, share)}


def test_constants_are_those_that_fit_the_measurements(measured: list[Sample]) -> None:
    found = fit(measured)
    for field in fields(Constants):  # written with 3 digits
        assert getattr(FITTED, field.name) == pytest.approx(getattr(found, field.name), rel=0.005), field.name


def test_errors_are_those_of_the_document_and_of_the_measurements(measured: list[Sample]) -> None:
    text = (ROOT / "docs" / "cost_model.md").read_text()
    stated = re.search(r"(\d+) cells; the median of the relative errors' sizes is (\d+)%, the\s+largest (\d+)%", text)
    assert stated
    assert len(measured) == int(stated[1])
    assert (int(stated[2]) / 100, int(stated[3]) / 100) == ERRORS
    sizes = [abs(error) for error in relative_errors(measured, FITTED)]
    # Stated in whole percents.
    assert statistics.median(sizes) == pytest.approx(ERRORS[0], abs=0.006)
    assert max(sizes) == pytest.approx(ERRORS[1], abs=0.006)


def test_steps_and_periods_are_as_measured_within_the_stated_error(measured: list[Sample]) -> None:
    cells = [sample for sample in measured if sample.method.kind == "models"]
    assert len(cells) == 21
    errors = []
    for cell in cells:
        job = Job(int(cell.size // 4), cell.compute, cell.cluster)
        errors.append(abs(job.seconds(cell.method) / cell.seconds - 1))
        own = local_seconds(cell.size, cell.compute, FITTED, cell.cluster)
        share = 1 - own / cell.seconds
        # Where communication is little, what is measured of it is mostly the noise of the step.
        if cell.method == Method("models", cell.method.period) and share > 0.2:
            # Asked for the share that communication had, the plan says the period that was used.
            period = chosen(job, share)[""].method.period
            assert abs(period / cell.method.period - 1) <= ERRORS[1], cell
    assert statistics.median(errors) <= ERRORS[0]
    assert max(errors) <= ERRORS[1]


def test_each_choice_keeps_within_the_share_and_one_step_less_would_not() -> None:
    for job in (JOB, replace(JOB, small=True), Job(10**9, 1.0, Gpus().cluster(64, 8, 100), Gpus().constants())):
        for choice in choices(job, 0.1):
            method = choice.method
            assert communication(method, job.size, job.step, job.constants, job.cluster) <= 0.1
            if method.period > 1 and not (method.overlap or method.local_period):
                shorter = replace(method, period=method.period - 1)
                assert communication(shorter, job.size, job.step, job.constants, job.cluster) > 0.1


def test_what_options_change() -> None:
    found = chosen(JOB)
    plain = found[""]
    assert found["compression=Compression.fp16"].sent < plain.sent
    assert found["overlap=period // 2"].method.period < plain.method.period / 4
    assert found["fragments=4"].pause < plain.pause / 3
    nested = found["local_period=period // 4"].method
    assert nested.local_period == nested.period // 4
    assert nested.local_period < plain.method.period < nested.period
    # A rank of a ring sends 2 (n − 1) / n of the model.
    assert plain.sent == pytest.approx(2 * 11 / 12 * 1e8 / plain.method.period)


def test_options_that_change_nothing_are_left_out() -> None:
    assert "compression=Compression.fp16" not in chosen(replace(JOB, small=True))
    for per_host in (1, 12):
        assert "local_period=period // 4" not in chosen(replace(JOB, cluster=Cluster(12, per_host, 1e9)))
    assert "has not been measured" in report(replace(JOB, constants=Gpus().constants()), 0.05)


@pytest.mark.parametrize(("text", "number"), [("25M", 25e6), ("1.3B", 1.3e9), ("300k", 3e5), ("12", 12)])
def test_numbers(text: str, number: float) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["", "M", "0", "-3", "1.5", "inf", "nan", "25G", "many"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"25M, 1.3B, 300k or 25000000, but this is {text!r}"):
        count(text)


def test_rates() -> None:
    assert [bits(rate) for rate in ("10gbit", "2.5gbit", "100mbit", "9kbit", "none")] == [
        1e10,
        2.5e9,
        1e8,
        9e3,
        float("inf"),
    ]
    for rate in ("", "gbit", "0gbit", "-1gbit", "1Gbps", "infgbit", "1000"):
        with pytest.raises(ValueError, match=f"1gbit, 100mbit, 10kbit or none, but this is {rate!r}"):
            bits(rate)


def command(line: str) -> subprocess.CompletedProcess[str]:
    """`python -m grawa_hvd plan` with these options."""
    return subprocess.run([sys.executable, "-m", "grawa_hvd", "plan", *line.split()], capture_output=True, text=True)


def test_the_command_prints_the_plan() -> None:
    done = command("--parameters 25M --step-time 0.2 --link 1gbit --workers 12 --hosts 3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == report(JOB, 0.05) + "\n"
    assert f"period={chosen(JOB)[''].method.period} " in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--workers 12 --hosts 5", "as many on each host, but is 12 with --hosts 5"),
        ("--workers 1", "must be 2 or more"),
        ("--workers 4 --share 1", "--share: must be above 0 and below 1, but is 1"),
        ("--workers 4 --link 1Gb", "--link: a rate is written as 1gbit"),
        ("--workers 4 --step-time 0", "--step-time: must be above 0, but is 0"),
    ],
)
def test_the_command_names_what_is_wrong(line: str, message: str) -> None:
    done = command(f"--parameters 25M --step-time 0.2 --link 1gbit {line}")
    assert done.returncode == 2
    assert message in done.stderr
