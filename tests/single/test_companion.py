"""Whenever a companion answers, it answers what the policy's weights say; otherwise it says that it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grawa_hvd.averaging import POLICIES, Averaging, Observed, inverse_norm_weights
from grawa_hvd.companion import LARGEST, Companion, is_fit_for_companion
from grawa_hvd.layers import Layout

WORKERS, LAYERS, ROOM = 3, 2, 5


@dataclass(frozen=True)
class OfTheUser(POLICIES["lgrawa"]):  # type: ignore[misc]
    """Derived from a policy that is separable, and not known to be so itself."""

    uses_gradients: ClassVar[bool] = True


def layout_of(seed: int, dtypes: list[torch.dtype], groups: int | None = None) -> Layout:
    generator = torch.Generator().manual_seed(seed)
    parameters = [
        torch.nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64).to(dtype)) for dtype in dtypes
    ]
    return Layout({parameter: f"p{index}" for index, parameter in enumerate(parameters)}, "parameter", groups)


class Workers:
    """Three workers in one process, each with its model and its companion."""

    def __init__(self, groups: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.layouts = [layout_of(seed, [dtype] * LAYERS, groups) for seed in range(WORKERS)]
        self.companions = [Companion(layout, POLICIES["lgrawa"]()) for layout in self.layouts]

    def round(self, scores: Tensor, usable: Tensor) -> list[list[Tensor] | None]:
        """Each worker's average of the parameters, or None; as a round goes, without Horovod."""
        wires = [
            companion.packed(companion.factors(scores[number][None], usable[number][None])[0], room=ROOM)
            for number, companion in enumerate(self.companions)
        ]
        total = torch.stack(wires).sum(dim=0)
        for wire in wires:
            wire.copy_(total)
            wire[-ROOM:] = torch.nan  # what is not the model's must not get into it
        masked = scores.masked_fill(~usable[:, None], torch.nan)
        found = [companion.averages(masked, usable) for companion in self.companions]
        return [None if one is None else self._parts(one) for one in found]

    def _parts(self, received: list) -> list[Tensor]:  # type: ignore[type-arg]
        parts: dict[int, Tensor] = {}
        for underway in received:
            bucket = self.layouts[0].buckets[underway.bucket]
            average = underway.sum.divide_into(bucket.new_buffer())
            parts.update(zip(bucket.members, bucket.split(average), strict=True))
        return [parts[index] for index in range(LAYERS)]

    def wanted(self, scores: Tensor, usable: Tensor) -> list[Tensor]:
        weights = inverse_norm_weights(scores.masked_fill(~usable[:, None], torch.nan))
        return [
            torch.stack([layout.parameters[layer].detach().double().flatten() for layout in self.layouts]).T
            @ weights[:, layer]
            for layer in range(LAYERS)
        ]


# Mostly such that a sum can be divided: what an answer is, not whether there is one, is asked here.
values = st.sampled_from([0.0] * 6 + [0.3] * 4 + [1.0, 3e4, 1e-25])
tables = st.lists(st.lists(values, min_size=LAYERS, max_size=LAYERS), min_size=WORKERS, max_size=WORKERS)
flags = st.sampled_from([[True, True, True]] * 3 + [[True, False, True]])
rounds = st.lists(st.tuples(tables, flags), min_size=2, max_size=5)


@given(history=rounds, groups=st.sampled_from([None, 2]), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=200, deadline=None)
def test_an_answer_is_the_weighted_sum_and_the_same_everywhere(
    history: list[tuple[list[list[float]], list[bool]]], groups: int | None, dtype: torch.dtype
) -> None:
    """Whatever was dead or diverged in earlier rounds.

    Factor, product, M − 1 sums, reciprocal and product round to the parameter's type: M + 3 times eps/2 of Σβ|x|, and
    the largest |x| here is below 4.
    """
    workers = Workers(groups, dtype)
    for table, flags in history:
        scores, usable = torch.tensor(table, dtype=torch.float64), torch.tensor(flags)
        if not usable.any():
            continue
        answers = workers.round(scores, usable)
        wanted = workers.wanted(scores, usable)
        assert len({answer is None for answer in answers}) == 1
        for answer in answers:
            for layer, found in enumerate(answer or []):
                bound = (WORKERS + 3) * torch.finfo(found.dtype).eps * 4
                assert float((found.double() - wanted[layer]).abs().max()) <= bound
                assert torch.equal(found, answers[0][layer])  # type: ignore[index]


def test_ordinary_scores_are_answered_at_once_and_dead_layers_from_the_second_round_on() -> None:
    workers, everyone = Workers(), torch.ones(WORKERS, dtype=torch.bool)
    alive = torch.full((WORKERS, LAYERS), 0.5, dtype=torch.float64)
    dead = alive.index_fill(1, torch.tensor([1]), 0.0)
    answered = [workers.round(scores, everyone)[0] is not None for scores in (alive, dead, dead, alive, dead)]
    assert answered == [True, False, True, True, False]


@pytest.mark.parametrize("score", [2.0**-61, 2.0**61, 1e-320])
def test_scores_whose_factors_could_overflow_are_not_answered(score: float) -> None:
    workers, everyone = Workers(), torch.ones(WORKERS, dtype=torch.bool)
    scores = torch.ones(WORKERS, LAYERS, dtype=torch.float64)
    scores[1, 1] = score
    assert workers.round(scores, everyone) == [None] * WORKERS


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_which_models_and_policies_are_fit(policy: type[Averaging]) -> None:
    small = layout_of(0, [torch.float32] * 2)
    assert is_fit_for_companion(small, policy())
    assert is_fit_for_companion(layout_of(0, [torch.float64] * 2), policy())
    assert not is_fit_for_companion(layout_of(0, [torch.float32, torch.float64]), policy())
    assert not is_fit_for_companion(small, policy(floor=0.5))
    assert not is_fit_for_companion(small, OfTheUser())
    assert not is_fit_for_companion(layout_of(0, [torch.float32, torch.bfloat16]), policy())
    assert not is_fit_for_companion(layout_of(0, []), policy())
    for extra, fit in ((0, True), (1, False)):
        model = Layout({torch.nn.Parameter(torch.zeros(LARGEST // 4 + extra)): "p"}, "parameter", None)
        assert is_fit_for_companion(model, policy()) == fit


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_worker_scores_itself_as_the_others_score_it(policy: type[Averaging]) -> None:
    """Its factor is computed from its own row alone: to three roundings of a sum of squares the same."""
    norms = torch.rand(WORKERS, 50, dtype=torch.float64) * torch.logspace(-9, 9, 50, dtype=torch.float64)
    nothing = torch.full((WORKERS,), torch.nan, dtype=torch.float64)
    together = policy().scores(Observed(norms, nothing, nothing, nothing))
    alone = [policy().scores(Observed(row[None], *[nothing[:1]] * 3)) for row in norms]
    torch.testing.assert_close(torch.cat(alone), together, rtol=50 * 2**-53, atol=0)
