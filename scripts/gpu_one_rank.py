"""Lets one rank average with itself on a GPU, in eleven settings, beside the bare optimizer: what NCCL is tried with.

    python -m horovod.runner.launch -np 1 -H localhost:1 python scripts/gpu_one_rank.py --device cuda --json nccl.json

A worker alone has weight 1, and its centre is its own model, so both must end at the same parameters up to rounding;
with outer momentum the centre runs ahead of it, as a few lines here do to the bare optimizer's parameters.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grawa_hvd
from benchmarks.alone import average_alone
from grawa_hvd.transport.horovod import built_with

STEPS, PERIOD, PULL = 64, 8, 0.5
# Some twenty roundings a step and element in either optimizer, relative to the largest of the layer.
ROUNDING = STEPS * 20 * torch.finfo(torch.float32).eps
# Differences from the centre travel in 16 bits; what they lose is sent in the next round.
HALF_ROUNDING = torch.finfo(torch.float16).eps


@dataclass(frozen=True)
class Setting:
    """One way to set the optimizer up."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    width: int = 2048
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    tolerance: float = ROUNDING


SETTINGS = [
    Setting("small model", width=128),
    Setting("lgrawa"),
    Setting("uniform", {"averaging": "uniform"}),
    Setting("overlap", {"overlap": 2}),
    Setting("fragments", {"fragments": 3}),
    Setting("fp16", {"compression": hvd.Compression.fp16}, tolerance=ROUNDING + HALF_ROUNDING),
    Setting("outer momentum", {"outer_momentum": 0.5}),
    Setting("groups", {"groups": 2}),
    Setting("modules", {"layers": "module"}),
    Setting("AdamW, small model", width=128, kind=torch.optim.AdamW),
    Setting("AdamW", kind=torch.optim.AdamW),
]


def network(width: int, device: str) -> nn.Sequential:
    """Smooth, and trained with small steps: what rounding changes must not grow by itself until the end."""
    torch.manual_seed(1)
    sizes = (64, width, width, 10)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2]).to(device)


def optimizer_of(setting: Setting, model: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": 0.01, "momentum": 0.9} if setting.kind is torch.optim.SGD else {"lr": 1e-3, "eps": 1e-2}
    return setting.kind(model.parameters(), **options)


class OuterMomentum:
    """v ← η v + (x − c), c ← c + v, x ← x + λ (c − x), on the parameters of one worker; the first round has v = 0."""

    def __init__(self, params: list[Tensor], eta: float) -> None:
        self._params, self._eta = params, eta
        self._centers: list[Tensor] = []
        self._velocities = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def round(self) -> None:
        if self._eta == 0:
            return
        if not self._centers:
            self._centers = [param.clone() for param in self._params]
        for param, center, velocity in zip(self._params, self._centers, self._velocities, strict=True):
            velocity.mul_(self._eta).add_(param - center)
            center.add_(velocity)
            param.lerp_(center, PULL)


def compare(setting: Setting, device: str) -> dict[str, Any]:
    """Train both; the largest difference of a parameter, relative to the largest of its layer."""
    model, plain = network(setting.width, device), network(setting.width, device)
    ours: Any = grawa_hvd.DistributedGrawaOptimizer(
        optimizer_of(setting, model), model.named_parameters(), period=PERIOD, pull=PULL, proximity=0.0,
        **setting.options,
    )  # fmt: skip
    bare = optimizer_of(setting, plain)
    outer = OuterMomentum(list(plain.parameters()), setting.options.get("outer_momentum", 0.0))
    seconds: list[float] = []
    for step in range(STEPS):
        inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(step)).to(device)
        labels = torch.arange(32, device=device) % 10
        for network_, optimizer in ((model, ours), (plain, bare)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network_(inputs), labels).backward()
            optimizer.step()
        if (step + 1) % PERIOD == 0:
            outer.round()
            seconds += [ours.last_round.seconds] if ours.last_round is not None else []
    with ours.consensus(), torch.no_grad():
        deviations = [
            (mine - other).abs().max() / other.abs().max()
            for mine, other in zip(model.parameters(), plain.parameters(), strict=True)
        ]
    worst = float(torch.stack(deviations).max())  # NaN if there is one
    return {
        "setting": setting.name,
        "parameters": sum(param.numel() for param in model.parameters()),
        "rounds": ours.rounds,
        "deviation": worst,
        "allowed": setting.tolerance,
        "last_round_milliseconds": 1e3 * seconds[-1],
        "is_right": worst <= setting.tolerance and ours.rounds >= STEPS // PERIOD - 1,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="how many, from the first (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    hvd.init()
    average_alone()
    torch.backends.cuda.matmul.allow_tf32 = False
    found = []
    for setting in SETTINGS[: arguments.settings]:
        found.append(compare(setting, arguments.device))
        row = found[-1]
        print(
            f"{row['setting']:20}{row['parameters']:>10,} parameters{row['rounds']:>3} rounds  deviation"
            f" {row['deviation']:.1e} of {row['allowed']:.1e} allowed  last round"
            f" {row['last_round_milliseconds']:.2f} ms  {'right' if row['is_right'] else 'WRONG'}",
            flush=True,
        )
    if arguments.json is not None:
        gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else None
        head = {"device": gpu or "cpu", "torch": torch.__version__, "transports": dict(built_with())}
        arguments.json.write_text(json.dumps({**head, "settings": found}, indent=1) + "\n")
    hvd.shutdown()
    sys.exit(not all(row["is_right"] for row in found))


if __name__ == "__main__":
    main()
