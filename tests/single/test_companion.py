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
    """Derived from a policy that has factors, and not known to weigh by them itself."""

    uses_gradients: ClassVar[bool] = True


@dataclass(frozen=True)
class BySamples(Averaging):
    """Weights proportional to the samples: a policy of the user's with factors of its own."""

    uses_gradients: ClassVar[bool] = False

    def scores(self, observed: Observed) -> Tensor:
        return 1 / observed.samples[:, None].expand_as(observed.norms)

    def factors(self, observed: Observed) -> Tensor:
        return observed.samples[:, None].expand_as(observed.norms)


def seen(norms: Tensor, samples: Tensor | None = None) -> Observed:
    unknown = torch.full((len(norms),), torch.nan, dtype=torch.float64)
    return Observed(norms, unknown, unknown, unknown if samples is None else samples)


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
            companion.packed(companion.factors(seen(scores[number][None]), usable[number][None])[0], room=ROOM)
            for number, companion in enumerate(self.companions)
        ]
        total = torch.stack(wires).sum(dim=0)
        for wire in wires:
            wire.copy_(total)
            wire[-ROOM:] = torch.nan  # what is not the model's must not get into it
        masked = scores.masked_fill(~usable[:, None], torch.nan)
        found = [companion.averages(seen(masked), usable) for companion in self.companions]
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
    assert is_fit_for_companion(small, policy(floor=0.5)) == (policy is POLICIES["uniform"])
    assert not is_fit_for_companion(layout_of(0, [torch.float32, torch.bfloat16]), policy())
    assert not is_fit_for_companion(layout_of(0, []), policy())
    for extra, fit in ((0, True), (1, False)):
        model = Layout({torch.nn.Parameter(torch.zeros(LARGEST // 4 + extra)): "p"}, "parameter", None)
        assert is_fit_for_companion(model, policy()) == fit


def test_only_policies_that_write_factors_are_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they derive from, and whether they have a name or not."""
    small = layout_of(0, [torch.float32] * 2)
    assert is_fit_for_companion(small, BySamples())
    assert not is_fit_for_companion(small, OfTheUser())
    monkeypatch.setitem(POLICIES, "of the user", OfTheUser)
    assert not is_fit_for_companion(small, OfTheUser())


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_worker_weighs_itself_as_the_others_weigh_it(policy: type[Averaging]) -> None:
    """Its factor is computed from its own row alone: to three roundings of a sum of squares the same."""
    norms = torch.rand(WORKERS, 50, dtype=torch.float64) * torch.logspace(-9, 9, 50, dtype=torch.float64)
    together = policy().factors(seen(norms))
    alone = [policy().factors(seen(row[None])) for row in norms]
    assert together is not None
    torch.testing.assert_close(torch.cat(alone), together, rtol=50 * 2**-53, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_weights_are_the_factors_over_their_sum(policy: type[Averaging]) -> None:
    norms = torch.rand(WORKERS, 50, dtype=torch.float64) + 0.1
    norms[1, :10] = 0.0  # which tells nothing
    if policy is not POLICIES["lgrawa"]:
        norms[1] = 0.0
    factors = policy().factors(seen(norms))
    assert factors is not None
    weights = policy().weights(policy().scores(seen(norms)))
    torch.testing.assert_close(weights, factors / factors.sum(dim=0), rtol=8 * 2**-53, atol=0)


def test_factors_may_come_from_reports_and_one_that_is_missing_does_not_count() -> None:
    layouts = [layout_of(seed, [torch.float32] * LAYERS) for seed in range(WORKERS)]
    companions = [Companion(layout, BySamples()) for layout in layouts]
    samples = torch.tensor([1.0, torch.nan, 3.0], dtype=torch.float64)
    finite, nothing, unknown = torch.tensor([True]), torch.empty(0, dtype=torch.float64), samples.new_tensor(torch.nan)
    own = [
        companion.own_factors(nothing, torch.stack([unknown, unknown, count]), finite)
        for companion, count in zip(companions, samples, strict=True)
    ]
    assert [factors.tolist() for factors in own] == [[1.0] * LAYERS, [0.0] * LAYERS, [3.0] * LAYERS]
    norms = torch.zeros(WORKERS, LAYERS, dtype=torch.float64)
    wires = [companion.packed(factors, ROOM) for companion, factors in zip(companions, own, strict=True)]
    wires[0].copy_(torch.stack(wires).sum(dim=0))
    answer = companions[0].averages(seen(norms, samples), torch.ones(WORKERS, dtype=torch.bool))
    assert answer is not None
    found = answer[0].sum.divide_into(layouts[0].buckets[0].new_buffer())  # type: ignore[attr-defined]
    first, _, last = (torch.cat([p.detach().flatten() for p in layout.parameters]) for layout in layouts)
    torch.testing.assert_close(found, (first + 3 * last) / 4, rtol=0, atol=4 * 2**-23)
