"""scripts/cuda_check.py: what is read from the output of nvcc, without nvcc and without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import cuda_check  # noqa: E402

PACK = "_ZN5grawa4cuda12_GLOBAL__N_111pack_kernelIfLb1EEEvNS0_4ViewENS0_7ScalarsEPKT_PS5_"
LOG = f"""
[3/5] nvcc -c pack.cu
csrc/cuda/pack.cu(3): warning: something else
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{PACK}' for 'sm_90'
ptxas info    : Function properties for {PACK}
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 57 registers, used 0 barriers
ptxas info    : Compile time = 300.570 ms
ptxas info    : Compiling entry function 'norms' for 'sm_90'
ptxas info    : Function properties for norms
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 54 registers, used 1 barriers, 129 bytes smem
ptxas info    : Compiling entry function 'norms' for 'sm_120'
ptxas info    : Function properties for norms
    32 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 32 bytes cumulative stack size, 129 bytes smem, 400 bytes cmem[0]
"""


def test_usage_of_every_kernel_and_architecture_is_read() -> None:
    assert cuda_check.usages(LOG) == [
        cuda_check.Usage(PACK, "sm_90", registers=57, stack=0, spills=0, shared=0),
        cuda_check.Usage("norms", "sm_90", registers=54, stack=0, spills=0, shared=129),
        cuda_check.Usage("norms", "sm_120", registers=40, stack=32, spills=20, shared=129),
    ]
    assert cuda_check.usages("no kernel here") == []


def test_spills_are_named() -> None:
    assert cuda_check.spilling(cuda_check.usages(LOG), {"norms": "n"}) == ["n spills 20 bytes on sm_120"]


def test_table_has_a_row_per_kernel_and_a_column_per_architecture() -> None:
    lines = cuda_check.table(cuda_check.usages(LOG), {PACK: "pack<float, true>"}).splitlines()
    assert lines[0].split() == ["kernel", "sm_90", "sm_120"]
    assert lines[1].split() == ["norms", "54", "40+32B"]
    assert lines[2].split("  ")[0] == "pack<float, true>" and lines[2].split()[-2:] == ["57", "-"]
    assert lines[3].split() == ["bytes", "spilled", "0", "20"]


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        (
            "void grawa::cuda::(anonymous namespace)::pack_kernel<c10::Half, true>(grawa::cuda::View, c10::Half*)",
            "pack_kernel<Half, true>",
        ),
        ("void f<(bool)1, int (*)(long)>(int)", "f<true, int (*)(long)>"),
        ("grawa::cuda::write_piece(unsigned long*)", "write_piece"),
        ("plain", "plain"),
    ],
)
def test_names_are_short(signature: str, name: str) -> None:
    assert cuda_check.short_name(signature) == name


def test_toolkit_is_what_nvcc_says() -> None:
    assert cuda_check.toolkit_of("#$ _HERE_=/a/bin\n#$ TOP=/a/cuda/bin/..\n") == Path("/a/cuda")
    assert cuda_check.toolkit_of("nvcc: error") is None


def test_build_is_forced_and_verbose_and_keeps_what_is_set() -> None:
    env = cuda_check.environment_for_build(Path("/a"), {"NVCC_APPEND_FLAGS": "-g", "MAX_JOBS": "3", "X": "y"})
    assert env == {
        "NVCC_APPEND_FLAGS": "-g -Xptxas -v",
        "MAX_JOBS": "3",
        "X": "y",
        "FORCE_CUDA": "1",
        "CUDA_HOME": "/a",
    }


def test_without_nvcc_it_says_so_and_succeeds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["cuda_check.py", "--venv", str(tmp_path / "venv")])
    cuda_check.main()
    assert "nvcc was not found" in capsys.readouterr().out
    assert not (tmp_path / "venv").exists()
