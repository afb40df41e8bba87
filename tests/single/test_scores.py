"""Norm estimates against the formula e ← ρe + (1−ρ)n, ê = e / (1−ρ^k)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grawa_hvd.scores import FreshScores, LocalScores, NormEstimate, scores_source

EPSILON = 2.0**-52


@given(st.lists(st.floats(0, 1e30), min_size=1, max_size=40), st.floats(0, 0.99))
def test_estimates_follow_the_formula(norms: list[float], decay: float) -> None:
    estimate = NormEstimate(1, decay, torch.device("cpu"))
    running = 0.0
    for norm in norms:
        estimate.update(torch.tensor([norm], dtype=torch.float64))
        running = decay * running + (1 - decay) * norm
    expected = running / (1 - decay ** len(norms))
    # k steps of three roundings each; 1 − ρ^k loses at most the digits of 1 / (1 − ρ).
    assert estimate.value().item() == pytest.approx(expected, rel=8 * len(norms) / (1 - decay) * EPSILON, abs=1e-300)


def test_constant_norms_are_estimated_without_bias_from_the_first_step_on() -> None:
    estimate = NormEstimate(2, 0.85, torch.device("cpu"))
    for _ in range(5):
        estimate.update(torch.tensor([2.0, 3.0]))
        torch.testing.assert_close(estimate.value(), torch.tensor([2.0, 3.0], dtype=torch.float64))


def test_steps_without_a_gradient_do_not_count() -> None:
    estimate = NormEstimate(2, 0.5, torch.device("cpu"))
    estimate.update(torch.tensor([2.0, -1.0]))
    estimate.update(torch.tensor([-1.0, -1.0]))
    assert estimate.value().tolist() == [2.0, 0.0]


def test_a_zero_gradient_does_count() -> None:
    estimate = NormEstimate(1, 0.5, torch.device("cpu"))
    estimate.update(torch.tensor([3.0]))
    estimate.update(torch.tensor([0.0]))
    assert estimate.value().item() == pytest.approx(1.0)  # (0.25 · 3) / 0.75


def test_a_nan_stays_until_the_restart() -> None:
    estimate = NormEstimate(1, 0.85, torch.device("cpu"))
    estimate.update(torch.tensor([torch.nan]))
    estimate.update(torch.tensor([1.0]))
    assert estimate.value().isnan()
    estimate.restart()
    estimate.update(torch.tensor([1.0]))
    assert estimate.value().item() == pytest.approx(1.0)


def test_state_is_taken_over_by_layer_name() -> None:
    estimate = NormEstimate(2, 0.85, torch.device("cpu"))
    estimate.update(torch.tensor([2.0, 3.0]))
    other = NormEstimate(3, 0.85, torch.device("cpu"))
    other.load(["new", "b", "a"], estimate.state(["a", "b"]))
    assert other.value().tolist() == pytest.approx([0.0, 3.0, 2.0])


def test_scores_go_by_name_callable_or_object() -> None:
    def backward() -> None: ...

    assert scores_source("local") == LocalScores()
    assert scores_source(backward) == FreshScores(backward, decay=0.43)
    assert scores_source(LocalScores(0.5)) == LocalScores(0.5)
    with pytest.raises(ValueError, match='scores must be "local", a callable'):
        scores_source("fresh")


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay must be at least 0 and below 1, but is {decay}"):
        LocalScores(decay)
