"""Copies of an optimizer: `copy.deepcopy` makes one that trains on, and pickle says what to save instead."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class Trainer:
    """Holds a model and its optimizer, as trainers do."""

    def __init__(self, transport: LocalTransport, kind: Any, options: dict[str, Any]) -> None:
        self.rank = transport.rank
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        for parameter in self.model.parameters():
            nn.init.constant_(parameter, 0.1)
        self.optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            kind(self.model.parameters(), lr=0.01), self.model.named_parameters(), process_group=transport,
            **{"averaging": "lgrawa", "period": 3, "proximity": 0.1, "buffers": self.model, **options},
        )  # fmt: skip

    def train(self, steps: range) -> list[Tensor]:
        for step in steps:
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + self.rank))
            self.optimizer.zero_grad()
            self.model(x).square().sum().backward()
            self.optimizer.step()
        return [tensor.detach().clone() for tensor in self.model.state_dict().values()]


OPTIONS = [
    {},
    {"outer_momentum": 0.5, "averaging": "uniform"},
    {"overlap": 1},
    {"scores": grawa_hvd.scores.LocalScores(0.5)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("before", [0, 4, 6])
def test_a_copy_trains_on_as_the_original_does_and_leaves_it_alone(
    before: int, kind: Any, options: dict[str, Any]
) -> None:
    def work(transport: LocalTransport) -> tuple[list[Tensor], list[Tensor], list[int]]:
        trainer = Trainer(transport, kind, options)
        trainer.train(range(before))
        copied = copy.deepcopy(trainer)
        assert copied.optimizer.param_groups[0]["params"][0] is copied.model[0].weight
        ours = trainer.train(range(before, before + 7))
        theirs = copied.train(range(before, before + 7))
        return ours, theirs, [trainer.optimizer.rounds, copied.optimizer.rounds]

    for ours, theirs, (own, copied) in run_workers(2, work):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert own == copied > 0


def test_pickle_says_what_to_save_instead() -> None:
    def work(transport: LocalTransport) -> None:
        trainer = Trainer(transport, torch.optim.SGD, {})
        trainer.train(range(3))
        for save in (pickle.dumps, lambda value: torch.save(value, io.BytesIO()), copy.copy):
            for value in (trainer.optimizer, {"optimizer": trainer.optimizer}):
                if save is copy.copy and isinstance(value, dict):
                    continue
                with pytest.raises(TypeError, match=r"SGD cannot be pickled.*Save optimizer.state_dict\(\)"):
                    save(value)

    run_workers(2, work)
