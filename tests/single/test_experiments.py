"""Experiments: seeds in one simulation do not meet, the statistics are right, and a run goes on where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

import grawa_hvd
from experiments import cell, conditions, digits, text, when_weights_help
from experiments.arms import ARMS, Shuffled
from experiments.cell import Key
from experiments.groups import Groups, Watch
from experiments.half_speed import HalfSpeed
from experiments.rates import TUNING_SPLIT, chosen, search, sources
from experiments.rules import decisions
from experiments.statistics import bootstrap, holm, sign_flips
from experiments.store import Store
from experiments.tasks import TASKS
from experiments.verdict import Difference, compared
from grawa_hvd.averaging import LGRAWA, EDiT, MedianCap
from grawa_hvd.averaging.policy import Mix

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
W = conditions.WORKERS


def simulated(mix: Mix, shards: list[digits.Pair], model: nn.Module, optimizer: Any) -> Any:
    return grawa_hvd.simulate(
        model, functional.cross_entropy, shards, optimizer=optimizer, steps=24, batch_size=8, averaging=mix,
        period=6, proximity=0.0, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("mix", [LGRAWA(), EDiT(warmup=1), MedianCap()], ids=lambda mix: type(mix).__name__)
def test_the_first_group_trains_as_it_would_alone_whatever_the_second_does(mix: Mix) -> None:
    torch.manual_seed(0)
    models = [digits.mlp().double() for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    images, labels = digits.load(0).train
    dealt = conditions.evenly((images.double(), labels), generator)
    others = conditions.noisy((images.double(), labels), generator, 5)
    alone = simulated(mix, dealt, models[0], SGD)
    watch, groups = Watch(models, W, SGD), Groups(mix, W, lambda observed: observed)
    together = simulated(groups, dealt + others, models[0], watch.optimizer)
    for name, own in alone.workers.items():
        # 24 steps and 4 sums in another order: roundings of float64 to a relative 2^-53, grown by training.
        torch.testing.assert_close(together.workers[name][:W], own, rtol=1e-10, atol=1e-11)
        assert not torch.allclose(together.workers[name][W:].mean(0), own.mean(0), atol=1e-3)
    torch.testing.assert_close(groups.weights[-1][:W], alone.rounds[-1].weights, rtol=1e-9, atol=1e-12)


def test_the_average_by_the_weights_of_the_last_round_is_its_center() -> None:
    torch.manual_seed(0)
    model, (images, labels) = digits.mlp().double(), digits.load(0).train
    dealt = conditions.noisy((images.double(), labels), torch.Generator().manual_seed(0), 3)
    result = simulated(LGRAWA(), dealt, model, SGD)
    last = dict(zip(result.rounds[-1].layer_names, result.rounds[-1].weights.unbind(1), strict=True))
    for name, value in cell.averaged(result.workers, last).items():
        torch.testing.assert_close(value[0], result.center[name], rtol=0, atol=1e-14)


def test_slow_workers_make_every_second_step_alone() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(6, 8, 3, dtype=torch.float64)
    slow = torch.arange(8) < 2
    stacked = nn.Parameter(torch.zeros(8, 3, dtype=torch.float64))
    optimizer = HalfSpeed([stacked], slow=slow, lr=0.1, momentum=0.9)
    for gradient in gradients:
        stacked.grad = gradient.clone()
        optimizer.step()
    for worker, steps in ((0, gradients[::2]), (1, gradients[::2]), (5, gradients)):
        own = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        usual = torch.optim.SGD([own], lr=0.1, momentum=0.9)
        for gradient in steps:
            own.grad = gradient[worker].clone()
            usual.step()
        assert torch.equal(stacked[worker], own)


def test_conditions_deal_out_every_digit_once_and_spoil_what_they_say() -> None:
    train = digits.load(0).train
    whole = Counter(map(bytes, train[0].numpy()))
    for name, condition in conditions.CONDITIONS.items():
        dealt = condition.deal(train, torch.Generator().manual_seed(3))
        found = Counter(bytes(image) for images, _ in dealt for image in images.numpy())
        assert len(dealt) == W and min(len(images) for images, _ in dealt) >= conditions.LEAST
        extra = found - whole
        assert not whole - found and sum(extra.values()) == (1 if name == "spike" else 0)
    label_of = {bytes(image): int(label) for image, label in zip(train[0].numpy(), train[1], strict=True)}
    dealt = conditions.CONDITIONS["noisy_3"].deal(train, torch.Generator().manual_seed(3))
    wrong = [
        sum(label_of[bytes(image)] != int(label) for image, label in zip(images.numpy(), labels, strict=True))
        / len(labels)
        for images, labels in dealt
    ]
    assert min(wrong[:3]) > 0.7 and max(wrong[3:]) == 0  # 9 of 10 random labels are wrong
    skewed = conditions.CONDITIONS["skew_0.1"].deal(train, torch.Generator().manual_seed(3))
    largest = [torch.bincount(labels, minlength=10).max() / len(labels) for _, labels in skewed]
    assert sum(largest) / W > 0.4  # a tenth each, were they alike


def test_shuffled_weights_are_those_of_the_policy_in_another_order() -> None:
    norms = torch.rand(W, 3, dtype=torch.float64) + 0.1
    none = torch.full((W,), torch.nan, dtype=torch.float64)
    usable = torch.arange(W) != 2
    observed = grawa_hvd.averaging.Observed(usable, norms, torch.zeros_like(norms), none, none, none)
    plain, _ = LGRAWA()(observed, ())
    shuffled = Shuffled(LGRAWA())
    first, second = (shuffled(observed, ())[0].weights for _ in range(2))
    assert (first[2] == 0).all()
    assert not torch.equal(first, second)
    for weights in (first, second):
        assert sorted(map(tuple, weights.tolist())) == sorted(map(tuple, plain.weights.tolist()))


def test_the_bootstrap_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 20)
    low, high = bootstrap(values.tolist())
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=5).confidence_interval
    # A 2.5% quantile of 10 000 means, whose deviation is some .2, has a standard error of about .2·.027.
    assert low == pytest.approx(theirs.low, abs=0.03)
    assert high == pytest.approx(theirs.high, abs=0.03)
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_sign_flips_are_exact_for_few_pairs_and_near_scipy_for_many() -> None:
    assert sign_flips([1.0, 2.0, 3.0]) == 2 / 8  # all signs alike, either way
    assert sign_flips([1.0, -1.0]) == 1.0
    assert sign_flips([0.1] * 10) == 2 / 1024
    values = np.random.default_rng(2).normal(0.4, 1.0, 18)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**20).pvalue
    assert sign_flips(values.tolist()) == pytest.approx(theirs, abs=0.015)  # 4 errors of 2^14 flips, at most .0039 each


def test_holm_on_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("best", "found", "looked_at"), [(3, 3, [2, 3, 4]), (9, 6, [2, 3, 4, 5, 6]), (0, 1, [2, 3, 4, 1])]
)
def test_the_search_for_a_rate_goes_on_while_the_best_lies_at_an_edge(
    best: int, found: int, looked_at: list[int]
) -> None:
    tried = []

    def score(rate: float) -> float:
        tried.append(rate)
        return -abs(rate - best)

    assert search((1, 2, 3, 4, 5, 6), 2, score) == found
    assert tried == looked_at
    assert search((1, 2, 3, 4, 5, 6), 2, lambda rate: 0.0) == 1


def test_the_rate_of_a_condition_between_two_others_is_that_of_their_sum() -> None:
    task = TASKS["mlp"]
    assert sources(task, "noisy_1", "lgrawa") == ["iid", "noisy_3"] and sources(task, "noisy_1", "oracle") == [
        "noisy_3"
    ]
    assert sources(task, "spike", "lgrawa") == ["spike"]
    plain = {("iid", 0.03): 0.9, ("iid", 0.1): 0.8, ("iid", 0.2): 0.7, ("iid", 0.01): 0.8}
    plain |= {("noisy_3", 0.03): 0.5, ("noisy_3", 0.1): 0.9, ("noisy_3", 0.2): 0.4}
    cells = [made(name, "lgrawa", [value] * 5, lr=lr, split=TUNING_SPLIT) for (name, lr), value in plain.items()]
    assert [chosen(task, name, "lgrawa", cells) for name in ("iid", "noisy_3", "noisy_1")] == [0.03, 0.1, 0.1]
    assert chosen(task, "iid", "lgrawa", cells[:3]) is None  # the next rate below is missing


def test_the_text_is_cut_into_windows_that_are_dealt_out_once() -> None:
    data = text.load(0)
    for inputs, targets in data:
        assert torch.equal(inputs[:, 1:], targets[:, :-1]) and inputs.shape[1] == text.CONTEXT
    assert sum(len(part[0]) for part in data) == len(text.windows())
    dealt = text.in_order(data.train, torch.Generator())
    assert torch.equal(torch.cat([inputs for inputs, _ in dealt]), data.train[0]) and len(dealt) == W
    first, last = ("".join(map(chr, inputs.flatten().tolist())) for inputs, _ in (dealt[0], dealt[-1]))
    assert first.count("\n#") > 10 * last.count("\n## ") and last.count("::") > 10 * first.count("std::")


def test_a_transformer_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    model = text.Transformer()
    given = torch.randint(0, text.CHARACTERS, (2, text.CONTEXT))
    changed = given.clone()
    changed[:, 20:] = (changed[:, 20:] + 1) % text.CHARACTERS
    before, after = model(given), model(changed)
    torch.testing.assert_close(before[:, :20], after[:, :20], rtol=0, atol=1e-5)
    assert (before[:, 20:] - after[:, 20:]).abs().amax() > 0.1


def made(condition: str, arm: str, plain: list[float], center: list[float] | None = None, **key: Any) -> dict[str, Any]:
    return {
        "condition": condition, "arm": arm, "split": 0, "lr": 0.1, **key, "plain": plain, "center": center or plain,
        "correlation": [None if arm == "uniform" else 0.5] * len(plain), "effective": [8.0] * len(plain),
    }  # fmt: skip


def with_tuning(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The cells, and others that choose .1 for all of their arms."""
    arms = {(one["condition"], one["arm"]) for one in cells}
    tried = {0.03: 0.1, 0.1: 0.2, 0.2: 0.1}
    return cells + [
        made(*pair, [value], lr=lr, split=TUNING_SPLIT) for pair in sorted(arms) for lr, value in tried.items()
    ]


BASE = [0.90 + 0.001 * seed for seed in range(10)]
BETTER, WORSE = [value + 0.02 for value in BASE], [value - 0.02 for value in BASE]


def test_the_rules_of_the_protocol_on_made_up_cells() -> None:
    cells = [made(name, "uniform", BASE) for name in ("iid", "noisy_3")]
    cells += [made("iid", "lgrawa", WORSE), made("noisy_3", "lgrawa", BETTER)]
    last = [value + 0.01 for value in BETTER]
    cells += [made("iid", "lgrawa_floor1", BASE), made("noisy_3", "lgrawa_floor1", BETTER, last)]
    cells += [made("noisy_3", "mediancap", BETTER)]

    def said(cells: list[dict[str, Any]], **others: list[dict[str, Any]]) -> list[str]:
        of = {"mlp": cells} | others
        return decisions({name: compared(TASKS[name], with_tuning(own)) for name, own in of.items()})

    averaging, floor, consensus = said(cells)
    assert "the rule says lgrawa_floor1 (no candidate, for not run everywhere: mediancap" in averaging
    assert "lgrawa: harms in iid; helps in noisy_3; mean 0.0." in averaging
    assert floor.startswith("floor: the rule says 1 (0 harms in 1")
    assert 'the rule says "last"' in consensus
    kept = said([one for one in cells if one["condition"] == "noisy_3"])
    assert kept[0].startswith("averaging: the rule says lgrawa ")
    # Harm in a condition of another model is harm.
    arms = {"uniform": BASE, "lgrawa": WORSE, "lgrawa_floor1": WORSE}
    averaging, *_ = said(cells, convolutions=[made("skew_0.1", *one, BASE) for one in arms.items()])
    assert "the rule says uniform" in averaging and "lgrawa_floor1: harms in skew_0.1 (convolutions)" in averaging


def test_the_rules_say_something_of_text_alone() -> None:
    cells = [made("iid", arm, BASE) for arm in ("uniform", "lgrawa", "lgrawa_floor1", "mediancap")]
    averaging, *_ = decisions({"text": compared(TASKS["mlp"], with_tuning(cells))})
    assert averaging.startswith("averaging: the rule says uniform")


def test_an_arm_is_compared_at_its_own_rate_alone() -> None:
    cells = [made("iid", "uniform", BASE), made("iid", "lgrawa", WORSE), made("iid", "lgrawa", BETTER, lr=0.2)]
    tuning = [made("iid", "lgrawa", [0.1 * lr], lr=lr, split=TUNING_SPLIT) for lr in (0.2, 0.3)]
    row = next(row for row in compared(TASKS["mlp"], with_tuning(cells)) if row.arm == "lgrawa")
    assert row.lr == 0.1 and row.to_uniform is not None and row.to_uniform.harms
    cells = with_tuning(cells[:1]) + cells[1:] + tuning + with_tuning(cells[1:2])[1:3]
    row = next(row for row in compared(TASKS["mlp"], cells) if row.arm == "lgrawa")
    assert row.lr == 0.1


def test_harm_and_help_as_defined() -> None:
    assert Difference.of(WORSE, BASE).harms and Difference.of(BETTER, BASE).helps
    assert not Difference.of([value + 0.001 for value in BASE], BASE).helps  # sure, but a tenth of a point
    assert not Difference.of(BETTER[:5], BASE[:5]).helps  # five signs are too few: p is 2/32
    assert not Difference.of(WORSE, BASE, least=3.0).harms


ARGUMENTS = ["--rounds", "1", "--models", "mlp", "--splits", "1", "--conditions", "spike", "half_speed"]


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS, "mlp", replace(TASKS["mlp"], rates=(0.03, 0.1), first=0))
    path, arguments = (
        tmp_path / "when_weights_help.json",
        [*ARGUMENTS, "--out", str(tmp_path), "--arms", "uniform", "oracle"],
    )
    when_weights_help.main([*arguments, "--minutes", "0"])
    assert "Cells are missing" in capsys.readouterr().out
    ran: list[Key] = []
    usual = cell.run
    monkeypatch.setattr(cell, "run", lambda task, key, seeds: (ran.append(key), usual(task, key, seeds))[1])
    when_weights_help.main(arguments)
    # Half speed borrows the rate of "iid"; the oracle has nothing to drop at half speed.
    tuned = [("iid", "uniform")] * 2 + [("spike", "uniform")] * 2 + [("spike", "oracle")] * 2
    assert sorted((key.condition, key.arm) for key in ran if key.split == TUNING_SPLIT) == sorted(tuned)
    measured = [(key.condition, key.arm) for key in ran if key.split == 0]
    assert sorted(measured) == [("half_speed", "uniform"), ("spike", "oracle"), ("spike", "uniform")]
    told = capsys.readouterr().out
    assert "averaging: lgrawa has not run everywhere." in told and "| oracle | " in told
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = path.read_text()
    when_weights_help.main(arguments)
    assert len(ran) == 9 and path.read_text() == before
    oracle = next(one for one in json.loads(before)["cells"] if one["arm"] == "oracle")
    assert oracle["effective"] == pytest.approx([7.0] * 5)
    with pytest.raises(ValueError, match="name another"):
        Store(path, {"model": "other"})


def test_arms_without_the_control_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        when_weights_help.main(["--models", "mlp", "--arms", "lgrawa"])
    assert "--arms must have uniform among them" in capsys.readouterr().err


SMALL = replace(TASKS["logistic"], rounds=2)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains(arm: str) -> None:
    condition = next(name for name in ("spike", "half_speed") if ARMS[arm].runs_in(conditions.CONDITIONS[name]))
    found = cell.run(SMALL, Key(condition, arm, 97, 0.1), seeds=2)
    assert all(0.2 < value < 1 for value in found["plain"] + found["center"] + found["worker"])
    is_equal = arm in ("uniform", "uniform_trains")
    assert found["effective"] == pytest.approx([8.0, 8.0]) if is_equal else max(found["effective"]) < 8


def test_a_seed_whose_workers_all_diverge_counts_as_chance() -> None:
    task = replace(SMALL, optimizer=lambda parameters, lr: torch.optim.SGD(parameters, lr=1e38))
    found = cell.run(task, Key("iid", "uniform", 97, 0.1), seeds=1)
    assert found["diverged"] and found["plain"] == [0.1]


def test_a_model_of_text_trains() -> None:
    found = cell.run(replace(TASKS["text"], rounds=1), Key("skew", "loss_heldout", 97, 0.01), seeds=1)
    # After 32 steps it does better than one that knows no more than how many characters there are, ln 128 = 4.85.
    assert -4.0 < found["plain"][0] < -2.0 and found["center"][0] != found["plain"][0]
