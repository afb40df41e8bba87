"""Scripts cuda_check, cuda_load, ptxas and toolkit: what they make of the output of nvcc, without nvcc or a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import cuda_check  # noqa: E402
import cuda_load  # noqa: E402
import kernel_limits  # noqa: E402
import ptxas  # noqa: E402
import sass  # noqa: E402
import toolkit  # noqa: E402
import torch_symbols  # noqa: E402

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
    assert ptxas.usages(LOG) == [
        ptxas.Usage(PACK, "sm_90", registers=57, stack=0, spills=0, shared=0),
        ptxas.Usage("norms", "sm_90", registers=54, stack=0, spills=0, shared=129),
        ptxas.Usage("norms", "sm_120", registers=40, stack=32, spills=20, shared=129),
    ]
    assert ptxas.usages("no kernel here") == []


def test_spills_are_named() -> None:
    assert ptxas.spilling(ptxas.usages(LOG), {"norms": "n"}) == ["n spills 20 bytes on sm_120"]


def test_table_has_a_row_per_kernel_and_a_column_per_architecture() -> None:
    lines = ptxas.table(ptxas.usages(LOG), {PACK: "pack<float, true>"}).splitlines()
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
    assert ptxas.short_name(signature) == name


def test_toolkit_is_what_nvcc_says() -> None:
    assert toolkit.toolkit_of("#$ _HERE_=/a/bin\n#$ TOP=/a/cuda/bin/..\n") == Path("/a/cuda")
    assert toolkit.toolkit_of("nvcc: error") is None


def test_build_is_forced_and_verbose_and_keeps_what_is_set() -> None:
    env = cuda_load.environment_for_build(Path("/a"), {"NVCC_APPEND_FLAGS": "-g", "MAX_JOBS": "3", "X": "y"})
    assert env == {
        "NVCC_APPEND_FLAGS": "-g -Xptxas -v",
        "MAX_JOBS": "3",
        "X": "y",
        "FORCE_CUDA": "1",
        "CUDA_HOME": "/a",
    }


@pytest.mark.parametrize("script", [cuda_check, cuda_load])
def test_without_nvcc_it_says_so_and_succeeds(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["script", *(["--venv", str(tmp_path / "venv")] if script is cuda_load else [])])
    script.main()
    assert "skipped, the CUDA kernels are NOT checked: nvcc was not found" in capsys.readouterr().out
    assert not (tmp_path / "venv").exists()


def test_code_is_made_for_the_architectures_asked_for() -> None:
    assert cuda_check.code_flags("8.0;9.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert cuda_check.code_flags("9.0a") == ["-gencode=arch=compute_90a,code=sm_90a"]
    with pytest.raises(SystemExit, match="'Hopper' is not of the form"):
        cuda_check.code_flags("9.0 Hopper")


def test_sources_are_compiled_with_the_flags_of_setup(tmp_path: Path) -> None:
    extra = {"cxx": ["-O3", "-std=c++20"], "nvcc": ["-lineinfo"]}
    extension = SimpleNamespace(extra_compile_args=extra, include_dirs=["csrc", "/torch"])
    sources = ["csrc/cuda/a.cu", "csrc/cuda/b.cpp"]
    wanted = cuda_check.commands(extension, sources, tmp_path, tmp_path, "9.0")
    assert list(wanted) == sources
    assert wanted["csrc/cuda/a.cu"][0] == str(tmp_path / "bin" / "nvcc")
    assert {"-lineinfo", "-std=c++20", "-Xptxas=-v", "-gencode=arch=compute_90,code=sm_90"} <= set(
        wanted["csrc/cuda/a.cu"]
    )
    assert {"-O3", "-std=c++20", "-fPIC", "-Icsrc", "-I/torch"} <= set(wanted["csrc/cuda/b.cpp"])


def test_what_does_not_compile_is_named_with_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"b\.cu cannot be compiled"):
        cuda_check.compile_all({"a.cu": ["echo", "fine"], "b.cu": ["sh", "-c", "echo why; exit 1"]})
    assert capfd.readouterr().err.strip() == "why"


def test_functions_that_an_object_defines_are_found(tmp_path: Path) -> None:
    source = tmp_path / "a.cpp"
    source.write_text(
        "namespace grawa { int used(); static int own() { return 1; } int f(long) { return own() + used(); } }"
    )
    subprocess.run(["g++", "-c", source, "-o", tmp_path / "a.o"], check=True, timeout=200)
    assert cuda_check.defined([tmp_path / "a.o"]) == {"grawa::f(long)"}


SASS = """
\t.headerflags\t@"EF_CUDA_SM90"
.text.norms:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/                   LDG.E R8, desc[UR4][R2.64] ;
        /*0030*/                   MEMBAR.SC.GPU ;
        /*0040*/               @P1 STL [R1], R3 ;
.text.pack:
        /*0000*/                   STG.E.128 desc[UR4][R2.64], R4 ;
"""


def test_machine_code_is_counted_a_kernel() -> None:
    assert sass.codes(SASS) == [
        sass.Code("norms", word_loads=1, word_stores=0, local=1, fences=1),
        sass.Code("pack", word_loads=0, word_stores=1, local=0, fences=0),
    ]


@pytest.mark.parametrize(
    ("registers", "shared", "blocks"), [(40, 0, 6), (41, 0, 5), (54, 0, 4), (8, 0, 8), (8, 100 * 1024, 2)]
)
def test_resident_blocks_are_those_of_the_cuda_guide(registers: int, shared: int, blocks: int) -> None:
    assert sass.resident_blocks(registers, shared) == blocks


def test_what_is_beyond_a_limit_is_named() -> None:
    usage = ptxas.Usage("k", "sm_90", registers=80, stack=0, spills=0, shared=0)
    code = sass.Code("k", word_loads=0, word_stores=0, local=2, fences=1)
    found = kernel_limits.violations([usage], [code], {"k": "layer_norms_kernel<false>"})
    assert found == [
        "layer_norms_kernel<false> takes 80 registers: 3 blocks, not 6",
        "layer_norms_kernel<false> has 1 MEMBAR.SC: at most 0",
        "layer_norms_kernel<false> has 2 accesses to local memory",
        "layer_norms_kernel<false> has 0 loads of 128 bits: at least 3",
    ]
    assert kernel_limits.violations([usage], [code], {"k": "new"}) == ["new has no limit in scripts/kernel_limits.py"]


def test_a_symbol_that_neither_pytorch_nor_the_extension_has_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("namespace at { void had(); void lacked(); } void f() { at::had(); at::lacked(); }")
    (tmp_path / "b.cpp").write_text('namespace at { __attribute__((visibility("default"))) void had() {} }')
    subprocess.run(["g++", "-c", "a.cpp"], cwd=tmp_path, check=True, timeout=200)
    subprocess.run(["g++", "-shared", "-fPIC", "b.cpp", "-o", "b.so"], cwd=tmp_path, check=True, timeout=200)
    assert torch_symbols.missing([tmp_path / "a.o"], [tmp_path / "b.so"]) == ["at::lacked()"]
