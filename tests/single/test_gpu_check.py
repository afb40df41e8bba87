"""scripts/gpu_check.py and gpu_plan.py without a GPU: the stages, what is refused, and the whole dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import gpu_carried  # noqa: E402
import gpu_check  # noqa: E402
import gpu_counters  # noqa: E402
import gpu_plan  # noqa: E402
from gpu_runner import Outcome, Stage  # noqa: E402

CPU_STAGES = {"kernels-cpu"}  # what they time is the processor beside the GPU
WITHOUT_DEVICE = {"extension", "build", "tests", "counters", *gpu_plan.ROUNDS, "rounds-report"}


@pytest.fixture
def plan(tmp_path: Path) -> gpu_plan.Plan:
    nccl, gloo = {"PYTHONPATH": "nccl"}, {"PYTHONPATH": "gloo"}
    return gpu_plan.Plan(tmp_path / "out", tmp_path / "rest", False, "9.0", nccl, gloo)


def by_name(plan: gpu_plan.Plan) -> dict[str, Stage]:
    return {stage.name: stage for stage in gpu_plan.stages(plan, gpu_plan.STAGES)}


def run(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_check.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def results_named(plan: gpu_plan.Plan, call: int) -> set[str]:
    """The files that the stages of a call are told to write where results are looked at first."""
    named = {f"gpu_{name}_{call}.{suffix}" for name, suffix in (("summary", "json"), ("log", "txt"), ("rest", "tar"))}
    for stage in gpu_plan.stages(plan, list(gpu_plan.CALLS[call])):
        for part in stage.command:
            path = stage.folder / part.rpartition("=")[2]
            if path.parent == plan.out and path.suffix in (".json", ".png", ".xml", ".txt"):
                named.add(path.name)
    return named


def test_everything_runs_on_the_gpu_and_is_built_for_it_alone(plan: gpu_plan.Plan) -> None:
    found = by_name(plan)
    assert list(found) == gpu_plan.STAGES
    assert found["build"].variables["TORCH_CUDA_ARCH_LIST"] == "9.0"
    for stage_name in set(found) - CPU_STAGES - WITHOUT_DEVICE:
        command = found[stage_name].command
        assert command[command.index("--device") + 1] == "cuda", stage_name


def test_ninja_is_found_beside_the_python_that_builds(plan: gpu_plan.Plan) -> None:
    path = by_name(plan)["build"].variables["PATH"].split(os.pathsep)
    assert path[0] == str(Path(sys.executable).parent)


def test_an_extension_that_was_carried_is_taken_and_else_one_is_built(plan: gpu_plan.Plan) -> None:
    assert by_name(plan)["extension"].command[1:] == ["-m", "grawa_hvd"]
    assert "build_ext" in by_name(replace(plan, no_extension="of other sources"))["extension"].command


def test_two_ranks_on_one_gpu_do_not_go_through_nccl(plan: gpu_plan.Plan) -> None:
    assert by_name(plan)["one-rank"].variables["PYTHONPATH"] == "nccl"
    assert by_name(plan)["two-ranks"].variables["PYTHONPATH"] == "gloo"
    missing = by_name(replace(plan, no_gloo="not carried"))["two-ranks"]
    assert (missing.missing, missing.is_optional) == ("not carried", False)


def test_without_horovod_the_kernels_are_checked_all_the_same(plan: gpu_plan.Plan) -> None:
    found = by_name(replace(plan, no_horovod="it does not load"))
    needing = {stage_name for stage_name, stage in found.items() if stage.missing == "it does not load"}
    assert needing == {"one-rank", "two-ranks", "local-steps", *gpu_plan.ROUNDS, "rounds-report"}


@pytest.mark.parametrize("call", gpu_plan.CALLS)
def test_results_of_a_call_are_at_most_8_files(plan: gpu_plan.Plan, call: int) -> None:
    assert len(results_named(plan, call)) <= 8


def test_a_dry_run_names_nothing_as_of_a_gpu(plan: gpu_plan.Plan) -> None:
    for stage in by_name(replace(plan, is_dry=True, capability=None)).values():
        assert "cuda" not in stage.command
        written = [Path(part.rpartition("=")[2]) for part in stage.command]
        assert not any(path.name.startswith("gpu_") and path.suffix != ".py" for path in written)


def test_tests_of_kernels_are_those_that_run_on_devices() -> None:
    names = {Path(file).name for file in gpu_plan.kernel_test_files()}
    assert {"test_pack.py", "test_blend.py", "test_layer_norms.py", "test_layer_table.py", "test_on_a_gpu.py"} <= names
    assert "test_settings.py" not in names
    # Its dry run would unpack other wheels over those that the check runs with.
    assert Path(__file__).name not in names


def test_an_extension_of_other_sources_is_not_taken(tmp_path: Path) -> None:
    wheels, root = tmp_path / "wheels", tmp_path / "root"
    (root / "grawa_hvd").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py"):
        (root / name).write_text("")
    (wheels / gpu_carried.EXTENSION).mkdir(parents=True)
    library = f"_C{gpu_carried.suffix()}"
    assert "none for this Python was carried" in gpu_carried.put_extension(wheels, root)
    (wheels / gpu_carried.EXTENSION / library).write_text("code")
    (wheels / gpu_carried.EXTENSION / gpu_carried.SOURCES).write_text("of others")
    assert "of other sources" in gpu_carried.put_extension(wheels, root)
    assert not (root / "grawa_hvd" / library).exists()
    (wheels / gpu_carried.EXTENSION / gpu_carried.SOURCES).write_text(gpu_carried.sources_key(root))
    assert gpu_carried.put_extension(wheels, root) == ""
    assert (root / "grawa_hvd" / library).read_text() == "code"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_refuses_and_writes_nothing(tmp_path: Path) -> None:
    out, site = tmp_path / "out", tmp_path / "site"
    refused = run("--out", str(out), "--wheels", str(tmp_path), "--site", str(site))
    assert refused.returncode != 0 and "sees no GPU" in refused.stderr
    assert not out.exists()


@pytest.mark.timeout(1000)  # on a machine that does other things beside
@pytest.mark.parametrize("call", gpu_plan.CALLS)
def test_the_whole_dry_run_passes(call: int, tmp_path: Path) -> None:
    out, site = tmp_path / "out", tmp_path / "site"
    arguments = ["--dry-run", "--call", str(call), "--out", str(out), "--site", str(site)]
    finished = run(*arguments, "--wheels", str(tmp_path / "none"), timeout=900)
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr
    assert "DRY RUN on the CPU" in finished.stdout
    summary = json.loads((out / f"dry_run_summary_{call}.json").read_text())
    assert summary["is_gpu_result"] is False and summary["gpu"] is None
    assert summary["versions"]["torch"] == torch.__version__
    results = {stage["name"]: stage["result"] for stage in summary["stages"]}
    assert list(results) == ["unpack", *gpu_plan.CALLS[call]]
    skipped = {stage_name for stage_name, result in results.items() if result == "skipped"}
    assert skipped <= {"build", "counters", "rounds-torch-4", "rounds-8"}
    assert set(results.values()) <= {"passed", "skipped"}
    assert len(os.listdir(out)) <= 8
    with tarfile.open(out / f"dry_run_rest_{call}.tar") as archive:
        assert all(member.startswith("dry_run_") for member in archive.getnames())


def test_report_of_tests_loses_the_host_and_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text('<testsuite name="pytest" errors="0" failures="1" skipped="2" tests="9" hostname="secret"/>')
    assert gpu_check.without_host(report) == {"tests": 9, "failures": 1, "errors": 0, "skipped": 2}
    assert "secret" not in report.read_text()
    assert gpu_check.without_host(tmp_path / "none.xml") == {}


def test_short_text_has_a_line_a_stage(plan: gpu_plan.Plan) -> None:
    facts = {"gpu": {"name": "NVIDIA X"}, "versions": {"torch": "2", "horovod": "0.28.1"}}
    text = gpu_check.short_text(plan, facts, [Outcome("build", "failed", 61.2, "exit code 1", True)], {"tests": 3})
    assert text.splitlines() == [
        "NVIDIA X, torch 2, Horovod 0.28.1",
        "build             failed       61 s  exit code 1",
        "tests: 3 tests",
    ]


def test_counters_are_read_from_what_ncu_prints() -> None:
    printed = (
        "==PROF== Connected\ncalled:pack\n"
        '"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread","other"\n'
        '"","","nsecond","register/thread",""\n'
        '"0","pack_kernel","51,200","57","x"\n'
        "==PROF== Disconnected\n"
    )
    assert gpu_counters.counted(printed, ["pack"]) == [
        {
            "kernel": "pack",
            "function": "pack_kernel",
            "counters": {
                "gpu__time_duration.sum [nsecond]": 51200.0,
                "launch__registers_per_thread [register/thread]": 57.0,
            },
        }
    ]
    with pytest.raises(SystemExit, match="1 kernels were watched, 2 called"):
        gpu_counters.counted(printed, ["pack", "blend"])
