#!/usr/bin/env python3
"""One of the workers of test_cluster.py: trains on its share and writes down what it came to, in a file a rank."""

from __future__ import annotations

import argparse
import json
import socket
import time
from pathlib import Path
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch
from problem import CLASSES, FEATURES, LEARNING_RATE, batch_of, shares
from torch import Tensor, nn
from torch.nn import functional

import grawa_hvd

IDLE_SECONDS = 1.0
COUNTERS = Path("/sys/class/net/eth0/statistics")


class Model(nn.Module):
    """Sums the weights of an image's pairs of pixels, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(FEATURES, CLASSES))
        self.bias = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, pairs: Tensor) -> Tensor:
        return functional.embedding_bag(pairs, self.weights, mode="sum") + self.bias


class Wire:
    """What the host's interface has carried since this was made; made and read by all ranks at the same time."""

    def __init__(self) -> None:
        hvd.barrier()
        self._start, self._received, self._sent = time.monotonic(), *self._read()
        # Nobody goes on before all have read.
        hvd.barrier()

    @staticmethod
    def _read() -> tuple[int, int]:
        return int((COUNTERS / "rx_bytes").read_text()), int((COUNTERS / "tx_bytes").read_text())

    def since(self) -> dict[str, float]:
        hvd.barrier()
        received, sent = self._read()
        seconds = time.monotonic() - self._start
        return {"received": received - self._received, "sent": sent - self._sent, "seconds": seconds}


def train(steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """Train and return this rank's account; the wire is watched from the end of the first round on."""
    pairs, labels = (torch.from_numpy(array) for array in shares()[hvd.rank()])
    model = Model()
    if "compression" in options:
        options = {**options, "compression": getattr(grawa_hvd.Compression, options["compression"])}
    if isinstance(options["averaging"], dict):
        options = {**options, "averaging": grawa_hvd.averaging.Decentralized(**options["averaging"])}
    optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(model.parameters(), lr=LEARNING_RATE), model.named_parameters(), **options
    )
    wire, handed_over = None, 0
    weights: list[np.ndarray[Any, Any]] = []
    for step in range(1, steps + 1):
        chosen = torch.from_numpy(batch_of(len(labels), hvd.rank(), step))
        optimizer.zero_grad()
        functional.cross_entropy(model(pairs[chosen]), labels[chosen]).backward()
        optimizer.step()
        if optimizer.rounds > len(weights):
            weights.append(optimizer.last_round.weights.numpy())
            handed_over += optimizer.last_round.bytes if wire else 0
            wire = wire or Wire()
    assert wire, "no round was made"
    carried = wire.since()
    idle = Wire()
    time.sleep(IDLE_SECONDS)
    idled = idle.since()
    return {
        "host": socket.gethostname(),
        "local_size": hvd.local_size(),
        **carried,
        **{f"idle_{way}": idled[way] / idled["seconds"] for way in ("received", "sent")},
        "handed_over": handed_over,
        "weights": np.stack(weights),
        **{f"parameter.{name}": parameter.detach().numpy() for name, parameter in model.named_parameters()},
        **{f"center.{name}": tensor.numpy() for name, tensor in optimizer.center.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="for DistributedGrawaOptimizer")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    arguments = parser.parse_args()
    hvd.init()
    np.savez(arguments.output / f"rank{hvd.rank()}.npz", **train(arguments.steps, arguments.options))
    hvd.barrier()


if __name__ == "__main__":
    main()
