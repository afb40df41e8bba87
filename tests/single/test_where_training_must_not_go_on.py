"""Steps where they would be lost, or would not end, are refused: inside `consensus()` and in the scores callable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from workers import errors, learn

import grawa_hvd


@pytest.mark.parametrize("call", ["step", "round_now"])
def test_training_inside_consensus_is_refused_and_goes_on_after_it(call: str) -> None:
    def work(learner: Any) -> list[int]:
        learner.step(3)
        for parameter in learner.model:
            parameter.grad = None
        before = learner.flat()
        refused = pytest.raises(RuntimeError, match=rf"{call}\(\) was called inside consensus\(\).*would be lost")
        with refused, learner.optimizer.consensus():
            getattr(learner.optimizer, call)()
        assert torch.equal(learner.flat(), before)
        with learner.optimizer.consensus():
            with learner.optimizer.consensus():
                pass
            with pytest.raises(RuntimeError):
                getattr(learner.optimizer, call)()
        learner.step(5)
        return learner.rounds()

    assert learn(2, work) == [[4, 8]] * 2


@pytest.mark.parametrize("source", [lambda backward: backward, grawa_hvd.scores.HeldOutScores])
def test_a_scores_callable_that_steps_is_refused(source: Any) -> None:
    found: list[tuple[str, str]] = []

    def work(learner: Any) -> None:
        def step() -> float:
            learner.optimizer.step()
            return 1.0

        learner.optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(learner.model.parameters(), lr=0.1), process_group=learner.optimizer._transport,
            averaging="lgrawa", period=2, scores=source(step),
        )  # fmt: skip
        learner.step(2)

    found = errors(2, work)
    assert found[0] == found[1]
    assert found[0] == ("RuntimeError", "optimizer.step() was called in the scores callable, which is to run forward "
                        "and backward alone")  # fmt: skip
