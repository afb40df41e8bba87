"""Whether torch, the kernels and something to send with are there."""

from __future__ import annotations

from collections.abc import Iterable

from grawa_hvd.doctor.finding import FAIL, PASS, WARN, Finding
from grawa_hvd.installation import Installation, problems, rows


def check(found: Installation, capabilities: Iterable[tuple[int, int]] = ()) -> list[Finding]:
    """A line for each part that is well, and for each problem. Without the kernels, or any transport, nothing works.

    Args:
        capabilities: compute capability of each CUDA device.
    """
    wrong = problems(found)
    findings = [
        Finding(PASS, part, text) for part, text in rows(found).items() if part not in {one.part for one in wrong}
    ]
    for problem in wrong:
        is_vital = problem.part == "kernels" and found.kernels is None
        findings.append(Finding(FAIL if is_vital else WARN, problem.part, problem.text))
    if not any({**(found.transports or {}), **found.torch_transports}.values()):
        text = "neither Horovod nor torch.distributed has a backend: install Horovod, or a torch with Gloo."
        findings.append(Finding(FAIL, "transports", text))
    built = [int(str(name).removeprefix("sm_")) for name in _architectures(found)]
    if built:
        findings += [_device(number, capability, built) for number, capability in enumerate(capabilities)]
    return findings


def _architectures(found: Installation) -> Iterable[object]:
    names = (found.kernels or {}).get("cuda_architectures") or ()
    return names if isinstance(names, (list, tuple)) else ()


def _device(number: int, capability: tuple[int, int], built: list[int]) -> Finding:
    """Machine code runs on its own generation from its number on; a newer GPU compiles the PTX of the newest."""
    own, about = 10 * capability[0] + capability[1], f"device {number}"
    names = ", ".join(f"sm_{one}" for one in built)
    if any(one // 10 == capability[0] and one <= own for one in built):
        return Finding(PASS, about, f"sm_{own}, kernels built for {names}")
    if own > max(built):
        return Finding(WARN, about, f"sm_{own} is newer than the kernels, {names}: rebuild them, or try their PTX.")
    return Finding(FAIL, about, f"sm_{own}, but the kernels were built for {names}: rebuild them on this machine.")
