"""The quadratic synchronization rule: τ = max(base, ⌊(a/lr)²⌋)."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import grawa_hvd
from grawa_hvd.rounds.qsr import LONGEST
from grawa_hvd.rounds.rows import Progress
from grawa_hvd.settings import Settings
from grawa_hvd.transport.local import LocalTransport, run_workers


@given(st.integers(1, 100), st.integers(1, 1000), st.integers(1, 1000))
def test_the_rule_holds_for_decimal_numbers(base: int, a: int, lr: int) -> None:
    period = grawa_hvd.QSR(base, a / 1000, lr=lambda step: lr / 1000)
    assert period(Progress()) == max(base, int(Fraction(a, lr) ** 2))


@pytest.mark.parametrize(("lr", "expected"), [(0.0, 4), (1e-300, LONGEST), (0.2, 4), (0.05, 16)])
def test_at_the_ends_of_the_range(lr: float, expected: int) -> None:
    assert grawa_hvd.QSR(4, 0.2, lr=lambda step: lr)(Progress()) == expected


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf")])
def test_a_learning_rate_out_of_range_is_an_error(lr: float) -> None:
    with pytest.raises(ValueError, match=f"lr must return a learning rate of at least 0, but returned {lr}"):
        grawa_hvd.QSR(4, 0.2, lr=lambda step: lr)(Progress())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0.2, float), "base must be an integer of at least 1, but is 0"),
        ((4, 0.0, float), "a must be above 0, but is 0.0"),
        ((4, 0.2, 0.1), "lr must be a function of the step that returns the learning rate, but is 0.1"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grawa_hvd.QSR(*arguments)


def lr_of(step: int) -> float:
    return 0.1 if step < 6 else 0.05


def test_ranks_compare_base_a_and_the_name_of_the_function() -> None:
    assert f"period=QSR(base=2, a=0.2, lr={__name__}.lr_of)" in Settings(period=grawa_hvd.QSR(2, 0.2, lr_of)).describe()


@pytest.mark.parametrize("reads", ["a function of the step", "the optimizer's own"])
def test_cycles_are_as_long_as_the_rule_says_where_they_begin(reads: str) -> None:
    def work(transport: LocalTransport) -> list[int]:
        model, rounds = nn.ParameterList([torch.zeros(2)]), []
        optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=lr_of(0)), model.named_parameters(), process_group=transport,
            period=grawa_hvd.QSR(2, 0.2, lr_of if reads == "a function of the step"
                                 else lambda step: optimizer.param_groups[0]["lr"]),
            on_round=lambda report: rounds.append(report.step),
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_of(step) / lr_of(0))
        for _ in range(40):
            model[0].grad = torch.ones(2)
            optimizer.step()
            scheduler.step()
        return rounds

    # Cycles of (.2/.1)² = 4 steps, and of (.2/.05)² = 16 once the rate is .05: from step 8 on, where a cycle begins.
    assert run_workers(2, work) == [[4, 8, 24, 40]] * 2
