"""scripts/gpu_check.py without a GPU: the stages it would run, that it refuses, and that a dry run is no result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_check  # noqa: E402
from stages import Outcome, Stage  # noqa: E402


@pytest.fixture
def plan(tmp_path: Path) -> gpu_check.Plan:
    nccl, gloo = {"PYTHONPATH": "nccl"}, {"PYTHONPATH": "gloo"}
    return gpu_check.Plan(tmp_path / "out", False, "9.0", nccl, gloo, "")


def by_name(plan: gpu_check.Plan) -> dict[str, Stage]:
    return {stage.name: stage for stage in gpu_check.stages(plan, gpu_check.STAGES)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_everything_runs_on_the_gpu_and_is_built_for_it_alone(plan: gpu_check.Plan) -> None:
    found = by_name(plan)
    assert list(found) == gpu_check.STAGES
    assert found["build"].variables["TORCH_CUDA_ARCH_LIST"] == "9.0"
    for name in ("kernels", "one-rank", "two-ranks", "memcheck", "racecheck"):
        command = found[name].command
        assert command[command.index("--device") + 1] == "cuda"


def test_two_ranks_on_one_gpu_do_not_go_through_nccl(plan: gpu_check.Plan) -> None:
    assert by_name(plan)["one-rank"].variables["PYTHONPATH"] == "nccl"
    assert by_name(plan)["two-ranks"].variables["PYTHONPATH"] == "gloo"
    missing = by_name(replace(plan, no_gloo="not carried"))["two-ranks"]
    assert (missing.missing, missing.is_optional) == ("not carried", False)


def test_results_are_at_most_8_files(plan: gpu_check.Plan) -> None:
    named = {
        Path(part.rpartition("=")[2]).name
        for stage in by_name(plan).values()
        for part in stage.command
        if Path(part.rpartition("=")[2]).name.startswith("gpu_") and not part.endswith(".py")
    }
    assert len(named - {"gpu_train_one_rank.png"} | {"gpu_summary.json", "gpu_log.txt"}) == 8


def test_a_dry_run_names_nothing_as_of_a_gpu(plan: gpu_check.Plan) -> None:
    for stage in by_name(replace(plan, is_dry=True, capability=None)).values():
        assert "cuda" not in stage.command
        assert not any(Path(part.rpartition("=")[2]).name.startswith("gpu_") for part in stage.command)


def test_tests_of_kernels_are_those_that_run_on_devices() -> None:
    names = {Path(file).name for file in gpu_check.kernel_test_files()}
    assert {"test_pack.py", "test_blend.py", "test_layer_norms.py", "test_layer_table.py"} <= names
    assert "test_settings.py" not in names


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_refuses_and_writes_nothing(tmp_path: Path) -> None:
    refused = run("--out", str(tmp_path / "out"), "--wheels", str(tmp_path))
    assert refused.returncode != 0 and "sees no GPU" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_goes_through_stages_and_says_what_it_is(tmp_path: Path) -> None:
    finished = run("--dry-run", "--out", str(tmp_path), "--wheels", str(tmp_path), "--stages", "build", "racecheck")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "DRY RUN on the CPU" in finished.stdout and "Every kernel on cpu" in finished.stdout
    assert sorted(os.listdir(tmp_path)) == ["dry_run_log.txt", "dry_run_summary.json"]
    summary = json.loads((tmp_path / "dry_run_summary.json").read_text())
    assert summary["is_gpu_result"] is False and summary["gpu"] is None
    assert summary["versions"]["torch"] == torch.__version__
    assert [(stage["name"], stage["result"]) for stage in summary["stages"]] == [
        ("build", "skipped"),
        ("racecheck", "passed"),
    ]


def test_report_of_tests_loses_the_host_and_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text('<testsuite name="pytest" errors="0" failures="1" skipped="2" tests="9" hostname="secret"/>')
    assert gpu_check.without_host(report) == {"tests": 9, "failures": 1, "errors": 0, "skipped": 2}
    assert "secret" not in report.read_text()
    assert gpu_check.without_host(tmp_path / "none.xml") == {}


def test_short_text_has_a_line_a_stage(plan: gpu_check.Plan) -> None:
    facts = {"gpu": {"name": "NVIDIA X"}, "versions": {"torch": "2", "horovod": "0.28.1"}}
    text = gpu_check.short_text(plan, facts, [Outcome("build", "failed", 61.2, "exit code 1", True)], {"tests": 3})
    assert text.splitlines() == [
        "NVIDIA X, torch 2, Horovod 0.28.1",
        "build         failed       61 s  exit code 1",
        "tests: 3 tests",
    ]
