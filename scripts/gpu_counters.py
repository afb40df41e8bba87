"""Reads the GPU's counters for ten kernels on 100 MB of parameters, with Nsight Compute: `gpu_counters.py --json FILE`.

Of each kernel: the time, the bytes that crossed the memory bus, the share of the bus, registers and resident warps, and
what its warps waited for. The clocks stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from grawa_hvd import ops

NUMEL = 25_000_000
SECTIONS = ["SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "WarpStateStats", "SchedulerStats"]
METRICS = "dram__bytes_read.sum,dram__bytes_write.sum"
KERNELS = "regex:(norms|pack|blend|step)_kernel"
WANTED = re.compile(
    r"gpu__time_duration\.sum|dram__bytes(_read|_write)?\.sum$|gpu__dram_throughput\.avg|launch__registers_per_thread$"
    r"|launch__(occupancy_limit_registers|grid_size)|sm__warps_active\.avg\.pct|lts__t_sector_hit_rate"
    r"|smsp__average_warps_issue_stalled_\w+_per_issue_active|smsp__issue_active\.avg\.pct"
)


def calls() -> dict[str, Callable[[], Any]]:
    """Each kernel once, by name."""
    x, grad, center = (torch.randn(NUMEL, device="cuda") for _ in range(3))
    wide, short = torch.randn(NUMEL // 2, device="cuda", dtype=torch.float64), grad.bfloat16()
    flat, one = torch.empty_like(x), torch.full((1,), 0.5, device="cuda")
    norms = torch.empty(1, device="cuda")
    return {
        "norms, float32": lambda: ops.layer_norms([grad]),
        "norms, bfloat16": lambda: ops.layer_norms([short]),
        "norms, float64": lambda: ops.layer_norms([wide]),
        "pack": lambda: ops.pack([x], one, flat),
        "pack with base": lambda: ops.pack([x], one, flat, base=center),
        "blend": lambda: ops.blend_([x], center, one),
        "blend with distances": lambda: ops.blend_([x], center, one, norms),
        "SGD step": stepper("sgd", torch.float32, center),
        "AdamW step": stepper("adamw", torch.float32, center),
        "AdamW step, bfloat16": stepper("adamw", torch.bfloat16, center),
    }


def stepper(algorithm: str, dtype: torch.dtype, center: torch.Tensor) -> Callable[[], bool]:
    """A step of one layer, with pull and norm."""
    param = torch.nn.Parameter(torch.randn(NUMEL, device="cuda", dtype=dtype))
    param.grad = torch.randn_like(param)
    is_sgd = algorithm == "sgd"
    optimizer = torch.optim.SGD([param], lr=1e-3, momentum=0.9) if is_sgd else torch.optim.AdamW([param], lr=1e-3)
    optimizer.step()
    table = ops.StepTable(algorithm, [param], [0])  # type: ignore[arg-type]
    table.set_targets([0], [center.to(dtype)], [param.stride()])
    sgd = ops.SgdHyperparameters(1e-3, 0.9, 0.0, 1e-4, False, False)
    values = sgd if is_sgd else ops.AdamwHyperparameters(1e-3, 0.9, 0.999, 1e-4, 0.01, False)
    norms = torch.empty(1, device="cuda")
    return lambda: table.step(optimizer.state, [values], 0.5, norms)


def launch() -> None:
    """What Nsight Compute watches: the second call of each."""
    every = calls()
    for call in every.values():
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for call in every.values():
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    print("called:" + ";".join(every))


def counted(output: str, names: list[str]) -> list[dict[str, Any]]:
    """The rows of ncu's CSV, one a kernel, and the second line its units."""
    units, *rows = csv.DictReader(line for line in output.splitlines() if line.startswith('"'))
    if len(rows) != len(names):
        raise SystemExit(f"gpu_counters: {len(rows)} kernels were watched, {len(names)} called")
    found = []
    for name, row in zip(names, rows, strict=True):
        picked = {f"{key} [{units[key]}]": _number(value) for key, value in row.items() if WANTED.search(key or "")}
        found.append({"kernel": name, "function": row["Kernel Name"], "counters": picked})
    return found


def _number(text: str) -> float | str:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text


def summary(kernel: dict[str, Any]) -> str:
    """One line of what matters most."""

    def value(start: str) -> float:
        found = next((v for k, v in kernel["counters"].items() if k.startswith(start)), math.nan)
        return found if isinstance(found, float) else math.nan

    stalls = {
        re.sub(r".*stalled_(\w+?)_per.*", r"\1", key): number
        for key, number in kernel["counters"].items()
        if "stalled" in key and isinstance(number, float)
    }
    worst = sorted(stalls, key=lambda key: -stalls[key])[:4]
    microseconds = value("gpu__time_duration.sum") / 1e3
    megabytes = [value(f"dram__bytes_{way}.sum") / 1e6 for way in ("read", "write")]
    return (
        f"{kernel['kernel']:22}{microseconds:7.1f} us  bus {value('gpu__dram_throughput.avg'):4.1f} %  read"
        f" {megabytes[0]:6.1f} MB, written {megabytes[1]:6.1f}  registers {value('launch__registers'):.0f}  warps"
        f" {value('sm__warps_active.avg'):4.1f} %  waits " + ", ".join(f"{key} {stalls[key]:.1f}" for key in worst)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launch", action="store_true", help="only call the kernels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counters there")
    arguments = parser.parse_args()
    if arguments.launch:
        launch()
        return
    ncu = shutil.which("ncu")
    if ncu is None:
        sys.exit("gpu_counters: ncu (Nsight Compute) was not found")
    command = [
        ncu,
        "--clock-control",
        "none",
        "--profile-from-start",
        "off",
        "--csv",
        "--page",
        "raw",
        "--print-units",
        "base",
        "-k",
        KERNELS,
    ]
    command += ["--metrics", METRICS]
    for section in SECTIONS:
        command += ["--section", section]
    told = subprocess.run(
        [*command, sys.executable, __file__, "--launch"], stdout=subprocess.PIPE, text=True, check=False
    )
    if told.returncode:
        sys.exit(f"gpu_counters: ncu ended with exit code {told.returncode}:\n{told.stdout[-4000:]}")
    names = re.search(r"^called:(.+)$", told.stdout, re.MULTILINE)[1].split(";")  # type: ignore[index]
    found = counted(told.stdout, names)
    print("\n".join(map(summary, found)))
    if arguments.json is not None:
        head = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "elements": NUMEL}
        arguments.json.write_text(json.dumps({**head, "kernels": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
