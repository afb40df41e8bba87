"""A callable for scores leaves no trace: gradients of all optimizers, and random numbers, are as before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from grawa_hvd.scores import FreshScores


def states() -> list[Tensor]:
    numbers = [hash(random.getstate()), hash(np.random.get_state()[1].tobytes())]
    return [torch.get_rng_state(), torch.tensor(numbers)]


@pytest.mark.parametrize("backward", [Tensor.backward, torch.autograd.backward])
@pytest.mark.parametrize("passes", [1, 2])
def test_gradients_of_all_that_the_callable_reaches_are_put_back(backward: object, passes: int) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2), nn.Linear(2, 2))
    own = list(model[0].parameters())
    model[3].requires_grad_(False)
    model(torch.ones(5, 3)).sum().backward()
    before = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    rng, drawn = states(), []

    def fresh() -> None:
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
        for _ in range(passes):
            backward(model(torch.rand(5, 3)).square().sum())  # type: ignore[operator]

    source = FreshScores(fresh)
    for number in (1, 2, 2):
        with source.gradients(own, number):
            assert all(p.grad is not None for p in [*own, *model[2].parameters()])
            assert own[0].grad is not before[0][0]
    assert all(p.grad is g for p, (g, _) in zip(model.parameters(), before, strict=True))
    assert all(g is None or torch.equal(g, value) for g, value in before)
    assert all(torch.equal(a, b) for a, b in zip(states(), rng, strict=True))
    assert drawn[0] != drawn[1] == drawn[2]  # fresh from round to round, and the same in a run that is continued
