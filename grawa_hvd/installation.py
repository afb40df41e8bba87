"""What is installed, what it was built with, and what is missing for full speed: `python -m grawa_hvd`."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

import grawa_hvd
from grawa_hvd.transport import installed


@dataclass(frozen=True)
class Installation:
    """What a report is made of; None where the part cannot be loaded.

    Args:
        versions: name → version of grawa_hvd, Python, torch and horovod.
        cuda: the CUDA version that torch was built with.
        devices: number of CUDA devices that torch sees.
        kernels: `grawa_hvd._C.build_info()`.
        transports: name → whether Horovod was built with it: Gloo, NCCL, MPI.
        torch_transports: the same of torch.distributed.
    """

    versions: Mapping[str, str | None]
    cuda: str | None
    devices: int
    kernels: Mapping[str, object] | None
    transports: Mapping[str, bool] | None
    torch_transports: Mapping[str, bool] = field(default_factory=dict)


def _kernels() -> Mapping[str, object] | None:
    try:
        info: Mapping[str, object] = importlib.import_module("grawa_hvd._C").build_info()
    except ImportError:  # a build for another torch does not load
        return None
    return info


def inspect() -> Installation:
    """Ask the environment of this Python."""
    horovod, transports = installed.horovod()
    versions = {
        "grawa_hvd": grawa_hvd.__version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "horovod": horovod,
    }
    within_torch = installed.torch_distributed()
    return Installation(versions, torch.version.cuda, torch.cuda.device_count(), _kernels(), transports, within_torch)


class Problem(NamedTuple):
    """Something that is missing or does not fit.

    Attributes:
        part: "kernels", "Horovod" or "CUDA".
        text: one line, with what mends it.
    """

    part: str
    text: str


def problems(found: Installation) -> list[Problem]:
    """All of them; empty if all is well."""
    lines = [Problem("kernels", text) for text in _of_kernels(found)]
    lines += [Problem("Horovod", text) for text in _of_horovod(found)]
    if found.cuda and not found.devices:
        text = f"torch has CUDA {found.cuda} but sees no device: check the driver, or CUDA_VISIBLE_DEVICES."
        lines.append(Problem("CUDA", text))
    return lines


def advice(found: Installation) -> list[str]:
    """One line for each problem."""
    return [problem.text for problem in problems(found)]


def _of_kernels(found: Installation) -> list[str]:
    rebuild = "pip install --no-build-isolation --no-deps -e ."
    if found.kernels is None:
        return [f"The kernels cannot be loaded by this torch: build them with `{rebuild}`."]
    lines = []
    built_for, torch_now = found.kernels["torch"], found.versions["torch"]
    # The part after `+` names where a wheel is from, as cpu or cu130; a build knows it or not.
    if str(built_for).partition("+")[0] != str(torch_now).partition("+")[0]:
        lines.append(f"The kernels were built for torch {built_for}, this is {torch_now}: rebuild, `{rebuild}`.")
    if found.cuda and not found.kernels["cuda_architectures"]:
        lines.append(f"torch has CUDA {found.cuda}, the kernels have not: with nvcc on PATH, `{rebuild}`.")
    return lines


def _of_horovod(found: Installation) -> list[str]:
    if found.transports is None:
        return ["Horovod cannot be loaded by this torch: run `python scripts/install_horovod.py`."]
    lines = []
    if not found.transports["Gloo"] and not found.transports["MPI"]:
        lines.append("Horovod has neither Gloo nor MPI: run `python scripts/install_horovod.py --rebuild`.")
    if found.cuda and not found.transports["NCCL"]:
        lines.append(
            "torch has CUDA, Horovod has no NCCL (it would send through host memory): "
            "run `python scripts/install_horovod.py --nccl`."
        )
    return lines


def rows(found: Installation) -> dict[str, str]:
    """Part → what is there of it, in words."""
    return {
        "versions": ", ".join(f"{name} {version or 'missing'}" for name, version in found.versions.items()),
        "kernels": ", ".join(f"{name} {_shown(value)}" for name, value in (found.kernels or {}).items()) or "missing",
        "CUDA": f"torch built with {found.cuda or 'none'}, {found.devices} devices",
        "Horovod": _built(found.transports or {}),
        "torch.distributed": _built(found.torch_transports),
    }


def report(found: Installation) -> str:
    """The versions, the kernels, the devices and the transports, a line each, then the advice."""
    lines = [f"{title + ':':19}{text}" for title, text in rows(found).items()]
    return "\n".join([*lines, *(f"- {line}" for line in advice(found) or ["Nothing is missing."])])


def _built(transports: Mapping[str, bool]) -> str:
    return ", ".join(f"{name} {'yes' if built else 'no'}" for name, built in transports.items()) or "missing"


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return str(value) if value not in ("", None) else "none"
