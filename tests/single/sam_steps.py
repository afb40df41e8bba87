"""Three steps of a linear model with SAM on two ranks; rank 0 writes the weights. Started by test_example_parts.py."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import optimizers
from peers import start

RHO, LR, STEPS, RANKS = 0.3, 0.1, 3, 2


def data(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs [STEPS, 8, 4] and targets [STEPS, 8, 1]."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(STEPS, 8, 4, generator=generator), torch.randn(STEPS, 8, 1, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    optimizers.add_options(parser)
    options = parser.parse_args()
    peers = start(None, "cpu")
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    workers = optimizers.distribute(model, model.parameters(), partial(torch.optim.SGD, lr=LR), options, peers)
    for inputs, targets in zip(*data(peers.rank), strict=True):
        workers.step(lambda net, x=inputs, y=targets: (net(x) - y).square().mean(), len(inputs))
    if peers.rank == 0:
        options.file.write_text(json.dumps(model.weight.tolist()))
    peers.stop()


if __name__ == "__main__":
    main()
