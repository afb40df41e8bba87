"""The emulator of CUDA kernels: what it makes of a source, which variants it builds, and how a run of it is judged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import emulator  # noqa: E402
import emulator_build  # noqa: E402
import emulator_mutants  # noqa: E402

TEXTS = {
    "cuda/a.cuh": "__device__ void f() {\n  __syncthreads();  // why\n  __syncthreads();\n}\n",
    "cuda/a.cu": '#include "cuda/a.cuh"\n',
    "cuda/b.cu": "",
}


def test_a_launch_becomes_a_call() -> None:
    text = "  norms_kernel<false><<<table.chunks(), kThreads, 0, stream>>>(view, norms);\n"
    made = emulator_build.in_plain_cpp("cuda/a.cu", text)
    called = "emulator::configured(norms_kernel<false>, table.chunks(), kThreads, 0, stream)(view, norms);"
    assert made == f'#line 1 "csrc/cuda/a.cu"\n  {called}\n'


def test_assembly_has_one_place() -> None:
    with pytest.raises(SystemExit, match=r"csrc/cuda/a\.cu has inline assembly: its place is csrc/cuda/assembly\.cuh"):
        emulator_build.in_plain_cpp("cuda/a.cu", 'asm("nop;");')
    emulator_build.in_plain_cpp("cuda/assembly.cuh", 'asm("nop;");')


def test_each_barrier_is_taken_out_once() -> None:
    found = emulator_mutants.mutants(TEXTS)
    assert [variant.name for variant in found] == ["without-cuda-a.cuh-2", "without-cuda-a.cuh-3"]
    assert all(variant.edits["cuda/a.cuh"].count("__syncthreads") == 1 for variant in found)


def test_what_includes_a_changed_file_is_built_anew() -> None:
    assert emulator_build.users_of({"cuda/a.cuh"}, TEXTS) == {"cuda/a.cuh", "cuda/a.cu"}


def test_tests_must_pass_on_the_kernels_and_fail_on_mutants() -> None:
    passed, failed = emulator.Result("a", True, "1 passed", 1.0), emulator.Result("b", False, "1 failed", 1.0)
    assert emulator.check_passes([passed, failed]) == ["the tests fail: b"]
    assert emulator.check_mutants([passed, failed]) == ["no test notices a kernel a"]
