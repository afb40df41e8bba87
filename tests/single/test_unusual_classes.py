"""Optimizer classes that torch steps though they lack what nearly all have; and wrappers that somebody else makes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor
from workers import learn


class Bare(torch.optim.Optimizer):
    """Never calls Optimizer.__init__, as Lookahead (Zhang et al., NeurIPS 2019) in a much-copied form of it."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        self.base, self.param_groups, self.state = base, base.param_groups, defaultdict(dict)

    def step(self, closure: Any = None) -> None:
        self.base.step()

    def state_dict(self) -> dict[str, Any]:
        return {"base": self.base.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state["base"])


@pytest.mark.fault("diverged")
def test_a_class_without_torch_s_constructor_averages_heals_and_is_saved() -> None:
    def work(learner: Any) -> Tensor:
        learner.step(4)
        learner.optimizer.load_state_dict(learner.optimizer.state_dict())
        learner.step(3)
        learner.model[0].data[0] = torch.nan if learner.rank == 1 else learner.model[0][0]
        learner.step(1)
        return learner.flat()

    first, second = learn(2, work, wrapped=lambda params: Bare(torch.optim.SGD(params, lr=0.1, momentum=0.5)))
    assert torch.equal(first, second) and first.isfinite().all()


@pytest.mark.parametrize("named", [{}, {"named_parameters": []}], ids=["alone", "as Horovod"])
def test_an_optimizer_of_the_wrapper_s_class_is_not_made_otherwise(named: dict[str, Any]) -> None:
    def work(learner: Any) -> None:
        with pytest.raises(TypeError, match="make a plain SGD, and wrap that once"):
            type(learner.optimizer)(learner.model.parameters(), lr=0.1, **named)

    learn(2, work)
