"""What the checks of the workers' health cost: a cycle of local steps and a round, with them and without.

    python -m benchmarks.health --json health.json

Before a round each worker looks whether its parameters are finite, which reads the model once; at every step, whether
somebody else has written to them. Here one rank averages with itself, so that nothing but the checks differs. Ways take
turns, a cycle at a time, in an order drawn anew for each pass. Ratios are of the processor's time, within a pass. A
second copy of the way with checks is the control: what it differs from the first by is noise.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

import grawa_hvd
from benchmarks import ranks
from benchmarks.alone import average_alone
from benchmarks.round_report import quartiles
from grawa_hvd.rounds import member
from grawa_hvd.rounds.moved import Moved
from grawa_hvd.rounds.observe import Measurement
from grawa_hvd.rounds.replica import Replica

CHECKED, UNCHECKED, CONTROL = "with checks", "without", "with checks, again"


class Unmeasured(Measurement):
    """Takes every parameter for finite."""

    def __init__(self, replica: Replica, by_distance: bool) -> None:
        self._replica, self._from_center = replica, False
        self.sizes = torch.ones(len(replica.layout.parameters))


def unchecked() -> ExitStack:
    """A context in which nothing is checked."""
    stack = ExitStack()
    stack.enter_context(mock.patch.object(member, "Measurement", Unmeasured))
    for name in ("step_begins", "step_ends", "at_round"):
        stack.enter_context(mock.patch.object(Moved, name, lambda *_: None))
    return stack


class Way:
    """A perceptron that learns random labels, by itself."""

    def __init__(self, name: str, width: int, batch_size: int, period: int) -> None:
        torch.manual_seed(0)
        self.name, self.seconds, self._period = name, list[float](), period
        self.model = nn.Sequential(
            nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
        )
        plain = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            plain, self.model.named_parameters(), averaging="lgrawa", period=period
        )
        self._batch = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))

    def cycle(self) -> None:
        """So many steps as there are from round to round, and the round."""
        inputs, labels = self._batch
        begin = time.process_time()
        for _ in range(self._period):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(inputs), labels).backward()
            self.optimizer.step()
        self.seconds.append(time.process_time() - begin)


def measure(ways: list[Way], cycles: int) -> None:
    """Cycles of all ways in turn; the first two of each are not counted."""
    order = random.Random(0)
    for _ in tqdm(range(2 + cycles), leave=False, unit="cycle"):
        for way in order.sample(ways, len(ways)):
            with unchecked() if way.name == UNCHECKED else ExitStack():
                way.cycle()
    for way in ways:
        del way.seconds[:2]


def over(way: Way, other: Way) -> dict[str, Any]:
    """Quartiles of a way's time over another's, pass by pass."""
    ratios = torch.tensor(way.seconds) / torch.tensor(other.seconds)
    return {"name": f"{way.name} / {other.name}", **quartiles(ratios)}


def same(ways: list[Way]) -> bool:
    """Whether all have learned the same, bitwise: the checks change nothing."""
    first: list[Tensor] = list(ways[0].model.parameters())
    return all(torch.equal(a, b) for way in ways[1:] for a, b in zip(first, way.model.parameters(), strict=True))


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints a line, and writes JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.health", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--width", type=int, default=1250, help="of the two hidden layers (default: %(default)s, 2.6 M parameters)")
    add("--batch-size", type=int, default=16, help="samples of a step (default: %(default)s)")
    add("--period", type=int, default=32, help="local steps from round to round (default: %(default)s)")
    add("--cycles", type=int, default=60, help="of each way (default: %(default)s)")
    add("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    described = ranks.environment()
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        average_alone()
        ways = [Way(name, options.width, options.batch_size, options.period) for name in (CHECKED, UNCHECKED, CONTROL)]
        measure(ways, options.cycles)
        dist.destroy_process_group()
    if not same(ways):
        raise SystemExit("health: with checks and without, the models have learned different things")
    checked, without, control = ways
    rows = [over(checked, without), over(control, checked)]
    for row in rows:
        print(f"{row['name']:36}{row['median']:.4f} ({row['lower_quartile']:.4f}–{row['upper_quartile']:.4f})")
    if options.json is not None:
        sizes = {
            "parameters": sum(parameter.numel() for parameter in checked.model.parameters()),
            "milliseconds_a_step": 1e3 * statistics.median(checked.seconds) / options.period,
        }
        found = {**described, "options": {**vars(options), "json": None}, **sizes, "rows": rows}
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
