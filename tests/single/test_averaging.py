"""Policies: weights against the formulas, over the whole range of scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from grawa_hvd import averaging as policies
from grawa_hvd.averaging import (
    GRAWA,
    LGRAWA,
    MGRAWA,
    Averaging,
    Column,
    Decentralized,
    Observed,
    Uniform,
    inverse_norm_weights,
    inverse_weights,
    policy,
    raise_to_floor,
)
from grawa_hvd.errors import AllWorkersDivergedError

EPSILON = 2.0**-52


def observed(norms: list[list[float]]) -> Observed:
    matrix = torch.tensor(norms, dtype=torch.float64)
    unknown = torch.full((len(norms),), math.nan, dtype=torch.float64)
    return Observed(~matrix.isnan().any(dim=1), matrix, torch.zeros_like(matrix), unknown, unknown, unknown)


matrices = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.one_of(st.just(0.0), st.floats(1e-150, 1e150)),
)


@dataclass(frozen=True)
class ByLoss(Averaging):
    needs: ClassVar[frozenset[Column]] = frozenset()

    def scores(self, observed: Observed) -> Tensor:
        return observed.losses[:, None].expand_as(observed.norms)


both = pytest.mark.parametrize("weights_of", [inverse_weights, inverse_norm_weights])


@both
@given(scores=matrices)
def test_columns_of_weights_sum_to_one(scores: np.ndarray, weights_of: Callable[[Tensor], Tensor]) -> None:
    weights = weights_of(torch.from_numpy(scores))
    # A sum of M terms in [0, 1], each the result of two roundings.
    torch.testing.assert_close(weights.sum(0), torch.ones(scores.shape[1], dtype=torch.float64), rtol=0,
                               atol=4 * len(scores) * EPSILON)  # fmt: skip
    assert (weights >= 0).all()


@both
@given(scores=matrices, exponent=st.integers(-400, 400))
def test_weights_do_not_depend_on_the_unit_of_the_scores(
    scores: np.ndarray, exponent: int, weights_of: Callable[[Tensor], Tensor]
) -> None:
    original = torch.from_numpy(scores)
    scaled = original * 2.0**exponent
    assert torch.equal(weights_of(scaled), weights_of(original))


@both
@pytest.mark.parametrize("unit", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_weights_are_inversely_proportional(unit: float, weights_of: Callable[[Tensor], Tensor]) -> None:
    weights = weights_of(torch.tensor([[1.0], [2.0], [4.0]], dtype=torch.float64) * unit)
    torch.testing.assert_close(weights.flatten(), torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7)


@both
@pytest.mark.parametrize("score", [0.0, 0.3])
def test_equal_scores_weigh_equally(score: float, weights_of: Callable[[Tensor], Tensor]) -> None:
    weights = weights_of(torch.full((4, 3), score, dtype=torch.float64))
    assert torch.equal(weights, torch.full((4, 3), 0.25, dtype=torch.float64))


def test_a_score_of_zero_is_the_limit_of_small_ones() -> None:
    scores = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1e-300, 5.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0.5], [0.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(inverse_weights(scores), expected)


def test_a_loss_of_zero_is_the_best_and_one_that_is_missing_has_no_weight() -> None:
    norms = torch.zeros(3, 2, dtype=torch.float64)
    for losses, expected in (([0.0, 1.0, 2.0], [1.0, 0.0, 0.0]), ([math.nan, 1.0, 3.0], [0.0, 0.75, 0.25])):
        everyone, told = norms[:, 0] == 0, torch.tensor(losses, dtype=torch.float64)
        seen = Observed(everyone, norms, norms, told, norms[:, 0], norms[:, 0])
        weights = ByLoss().weights(ByLoss().scores(seen))
        torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64)[:, None].expand(3, 2))


def test_a_floor_raises_a_loss_of_zero() -> None:
    """The median is 2, half of it 1."""
    weights = ByLoss(floor=0.5).weights(torch.tensor([[0.0], [2.0], [4.0]], dtype=torch.float64))
    torch.testing.assert_close(weights.flatten(), torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7)


def test_a_negative_score_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"ByLoss\.scores must be at least 0, but -0\.5 is one"):
        ByLoss().weights(torch.tensor([[math.nan], [1.0], [-0.5]], dtype=torch.float64))


def test_a_norm_of_zero_has_no_weight_while_another_is_positive() -> None:
    weights = inverse_norm_weights(torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0]], dtype=torch.float64))
    third = 1 / 3
    expected = torch.tensor([[0.0, third], [0.5, third], [0.5, third]], dtype=torch.float64)
    torch.testing.assert_close(weights, expected)


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_no_weight_in_any_column(
    bad: float, weights_of: Callable[[Tensor], Tensor]
) -> None:
    weights = weights_of(torch.tensor([[bad, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(weights, expected)


def test_no_finite_row_is_an_error() -> None:
    with pytest.raises(AllWorkersDivergedError, match="none of the 2 workers"):
        inverse_norm_weights(torch.tensor([[math.nan], [math.inf]]))


def test_scores_of_the_policies() -> None:
    seen = observed([[3.0, 4.0], [6.0, 8.0]])
    assert GRAWA().scores(seen).tolist() == [[5.0, 5.0], [10.0, 10.0]]
    assert MGRAWA().scores(seen).tolist() == [[7.0, 7.0], [14.0, 14.0]]
    assert LGRAWA().scores(seen).tolist() == [[3.0, 4.0], [6.0, 8.0]]
    assert Uniform().scores(seen).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_grawa_does_not_overflow_or_underflow_in_squares() -> None:
    scores = GRAWA().scores(observed([[3e200, 4e200], [3e-200, 4e-200], [0.0, 0.0]]))
    np.testing.assert_allclose(scores[:, 0].numpy(), [5e200, 5e-200, 0.0], rtol=4 * EPSILON)


@given(st.floats(1e-100, 1e100), st.floats(1e-100, 1e100))
def test_with_one_layer_all_three_are_the_same(first: float, second: float) -> None:
    seen = observed([[first], [second]])
    results = [p.weights(p.scores(seen)) for p in (GRAWA(), MGRAWA(), LGRAWA())]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_a_floor_bounds_the_ratio_of_weights() -> None:
    scores = torch.tensor([[1e-6], [1.0], [2.0]], dtype=torch.float64)
    weights = LGRAWA(floor=0.5).weights(scores)
    torch.testing.assert_close(weights.flatten(), torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64) / 7)


def test_a_floor_leaves_zeros_and_absent_workers_alone() -> None:
    scores = torch.tensor([[0.0], [math.nan], [1.0], [3.0], [0.1]], dtype=torch.float64)
    raised = raise_to_floor(scores, 0.5, counted=scores > 0)
    assert raised[[0, 2, 3, 4], 0].tolist() == [0.0, 1.0, 3.0, 0.5]
    assert raised[1, 0].isnan()


@pytest.mark.parametrize("floor", [-0.1, 1.5, math.nan])
def test_a_floor_out_of_range_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=f"floor must be from 0 to 1, but is {floor}"):
        LGRAWA(floor=floor)


def test_policies_go_by_name_or_as_objects() -> None:
    assert policy("lgrawa") == LGRAWA()
    assert policy(MGRAWA(floor=0.1)) == MGRAWA(floor=0.1)
    for wrong in ("median", 3, LGRAWA):
        with pytest.raises(ValueError, match="averaging must be one of 'decentralized', 'grawa', 'mgrawa', 'lgrawa'"):
            policy(wrong)  # type: ignore[arg-type]


def test_a_policy_without_scores_says_so() -> None:
    with pytest.raises(TypeError, match=r"Averaging must override scores\(\)"):
        Averaging().scores(observed([[1.0]]))


def test_a_policy_of_a_file_of_its_own_has_a_name_and_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file and its test are all that a built-in policy needs."""
    named = {"decentralized": Decentralized, "grawa": GRAWA, "mgrawa": MGRAWA, "lgrawa": LGRAWA, "uniform": Uniform}
    assert named.items() <= policies.POLICIES.items()
    monkeypatch.setitem(policies.POLICIES, "byloss", ByLoss)
    assert policies.ByLoss is ByLoss
    assert isinstance(policy("byloss"), ByLoss)
    with pytest.raises(AttributeError, match="has no attribute 'Mean'"):
        policies.Mean  # noqa: B018
