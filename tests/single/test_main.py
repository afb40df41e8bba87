"""`python -m grawa_hvd`: the advice fits what is found."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from grawa_hvd.installation import Installation, advice, report

CPU = Installation(
    versions={"grawa_hvd": "0.1.0", "Python": "3.11.7", "torch": "2.13.0+cpu", "horovod": "0.28.1"},
    cuda=None,
    devices=0,
    kernels={"torch": "2.13.0", "compiler": "GCC 13", "cxx_standard": 20, "cuda_architectures": ""},
    transports={"Gloo": True, "NCCL": False, "MPI": False},
    torch_transports={"Gloo": True, "NCCL": False},
)
GPU = replace(
    CPU,
    cuda="13.0",
    devices=8,
    kernels={**(CPU.kernels or {}), "cuda_architectures": "90"},
    transports={"Gloo": True, "NCCL": True, "MPI": False},
)


@pytest.mark.parametrize("complete", [CPU, GPU])
def test_a_complete_installation_needs_no_advice(complete: Installation) -> None:
    assert advice(complete) == []
    assert report(complete).endswith("- Nothing is missing.")
    assert "torch.distributed: Gloo yes, NCCL no\n" in report(complete)


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        (replace(GPU, kernels=CPU.kernels), "with nvcc on PATH"),
        (replace(GPU, transports=CPU.transports), "scripts/install_horovod.py --nccl"),
        (replace(GPU, devices=0), "sees no device"),
        (
            replace(CPU, kernels={**(CPU.kernels or {}), "torch": "2.12.0"}),
            "built for torch 2.12.0, this is 2.13.0+cpu",
        ),
        (replace(CPU, kernels=None), "kernels cannot be loaded"),
        (replace(CPU, transports=None), "Horovod cannot be loaded"),
        (replace(CPU, transports={"Gloo": False, "NCCL": False, "MPI": False}), "neither Gloo nor MPI"),
    ],
)
def test_what_is_missing_is_named_with_what_mends_it(lacking: Installation, named: str) -> None:
    (line,) = advice(lacking)
    assert named in line
    assert f"- {line}" in report(lacking)


def test_reports_this_installation_and_has_help() -> None:
    for arguments, expected in ([], "versions:"), (["--help"], "usage: python -m grawa_hvd"):
        command = [sys.executable, "-m", "grawa_hvd", *arguments]
        assert expected in subprocess.run(command, capture_output=True, text=True, check=True).stdout
