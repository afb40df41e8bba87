"""The warning where weights by gradient norms stay on few workers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from workers import Learner

import grawa_hvd
from grawa_hvd.transport.local import run_workers


class Skewed(Learner):
    """Worker 1 has small gradients, as one whose shard is easy."""

    def __init__(self, *arguments: Any, easy: int = 1, small: float = 0.01, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.easy, self.small = easy, small

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for number, parameter in enumerate(self.model):
                parameter.grad = torch.full_like(parameter, self.small if self.rank == self.easy else 1.0 + number)
            self.optimizer.step()


def warned(size: int, rounds: int, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_workers(size, lambda transport: Skewed(transport, period=1, **options).step(rounds))
    return [str(one.message) for one in caught if "stay on few workers" in str(one.message)]


@pytest.mark.parametrize("policy", [grawa_hvd.LGRAWA, grawa_hvd.MGRAWA, grawa_hvd.GRAWA])
def test_each_rank_warns_once_in_the_third_round(policy: Any) -> None:
    averaging = policy(floor=0.0)
    assert warned(4, 2, averaging=averaging) == []
    told = warned(4, 8, averaging=averaging)
    assert len(told) == 4 and len(set(told)) == 1
    # Weights of 100 (of the second layer, 200) to 1 to 1 to 1: 1/Σβ² = 103²/10003 = 1.06, or less.
    assert "as good as 1.1 of 4 workers" in told[0] or "as good as 1.0 of 4 workers" in told[0]
    assert "of the weight of the last was on rank 1." in told[0]
    for advice in ("floor=1.0", "HeldOutScores", 'averaging="uniform"'):
        assert advice in told[0]


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {"averaging": grawa_hvd.LGRAWA(floor=0.0), "small": 1e-20}),
        (4, {"averaging": "uniform"}),
        (4, {"averaging": "lgrawa"}),
        (4, {"averaging": grawa_hvd.LGRAWA(floor=0.0), "warmup_steps": 8}),
        (4, {"averaging": grawa_hvd.LGRAWA(floor=0.0), "easy": -1}),
    ],
    ids=["two workers", "uniform", "floor", "warm-up", "alike"],
)
def test_there_is_nothing_to_warn_of(size: int, options: dict[str, Any]) -> None:
    assert warned(size, 8, **options) == []


def test_rounds_must_follow_each_other() -> None:
    class Varying(Skewed):
        def step(self, count: int = 1) -> None:
            for number in range(count):
                self.easy = -1 if number % 3 == 2 else 1
                super().step()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_workers(4, lambda transport: Varying(transport, period=1, averaging=grawa_hvd.LGRAWA(floor=0.0)).step(12))
    assert not [one for one in caught if "stay on few workers" in str(one.message)]
