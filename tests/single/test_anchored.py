"""Optimizers that undo rounds are told of when they are wrapped."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class MADGRAD(torch.optim.SGD):
    pass


class Ours(MADGRAD):
    pass


def wrap(kind: Any) -> None:
    def work(transport: LocalTransport) -> None:
        model = nn.Linear(2, 1)
        grawa_hvd.DistributedGrawaOptimizer(
            kind(model.parameters(), lr=0.1), model.named_parameters(), process_group=transport
        )

    run_workers(1, work)


@pytest.mark.parametrize("kind", [MADGRAD, Ours])
def test_a_class_that_computes_parameters_from_its_state_is_told_of(kind: Any) -> None:
    with pytest.warns(UserWarning, match="MADGRAD computes the parameters from its state"):
        wrap(kind)


def test_others_are_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(torch.optim.Adagrad)
