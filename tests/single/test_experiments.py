"""Experiments: seeds in one simulation do not meet, the statistics are right, and a run goes on where it stopped."""

from __future__ import annotations

import json
from collections import Counter
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
from experiments import cell, conditions, digits, when_weights_help
from experiments.arms import ARMS, Shuffled
from experiments.groups import Groups, Watch
from experiments.half_speed import HalfSpeed
from experiments.statistics import bootstrap, holm, sign_flips
from experiments.store import Store
from experiments.verdict import Difference, compared, decisions
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


def made(condition: str, arm: str, plain: list[float], center: list[float] | None = None) -> dict[str, Any]:
    return {
        "condition": condition, "arm": arm, "split": 0, "plain": plain, "center": center or plain,
        "correlation": [None if arm == "uniform" else 0.5] * len(plain), "effective": [8.0] * len(plain),
    }  # fmt: skip


def test_the_rules_of_the_protocol_on_made_up_cells() -> None:
    base = [0.90 + 0.001 * seed for seed in range(10)]
    better, worse = [value + 0.02 for value in base], [value - 0.02 for value in base]
    cells = [made(name, "uniform", base) for name in ("iid", "noisy_3")]
    cells += [made("iid", "lgrawa", worse), made("noisy_3", "lgrawa", better)]
    cells += [made("iid", "lgrawa_floor1", base), made("noisy_3", "lgrawa_floor1", better, [v + 0.01 for v in better])]
    averaging, floor, consensus = decisions(compared(cells))
    assert "harms in iid, helps in noisy_3; the rule says lgrawa_floor1 (not run everywhere" in averaging
    assert floor.startswith("floor: the rule says 1 ")
    assert 'the rule says "last"' in consensus
    kept = decisions(compared([one for one in cells if (one["arm"], one["condition"]) != ("lgrawa", "iid")]))
    assert kept[0].endswith("it stays.")
    assert Difference.of(worse, base).harms and Difference.of(better, base).helps
    assert not Difference.of([value + 0.001 for value in base], base).helps  # sure, but a tenth of a point


ARGUMENTS = ["--rounds", "1", "--splits", "1", "--conditions", "spike", "half_speed", "--arms", "uniform", "oracle"]


def test_a_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(when_weights_help, "RATES", (0.03, 0.1))
    path = tmp_path / "results.json"
    when_weights_help.main([*ARGUMENTS, "--json", str(path), "--minutes", "0"])
    assert "Cells are missing" in capsys.readouterr().out
    ran: list[tuple[str, str]] = []
    usual = cell.run
    monkeypatch.setattr(cell, "run", lambda *key: (ran.append(key[:2]), usual(*key))[1])
    when_weights_help.main([*ARGUMENTS, "--json", str(path)])
    # Tuning was done; the oracle has nothing to drop at half speed.
    assert ran == [("spike", "uniform"), ("half_speed", "uniform"), ("spike", "oracle")]
    told = capsys.readouterr().out
    assert "averaging: lgrawa has not run." in told and "| oracle | " in told
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    before = path.read_text()
    when_weights_help.main([*ARGUMENTS, "--json", str(path)])
    assert len(ran) == 3 and path.read_text() == before
    oracle = next(one for one in json.loads(before)["cells"] if one["arm"] == "oracle")
    assert oracle["effective"] == pytest.approx([7.0] * 5)
    with pytest.raises(ValueError, match="name another --json"):
        Store(path, {"model": "other"})


def test_arms_without_the_control_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        when_weights_help.main(["--arms", "lgrawa"])
    assert "--arms must have uniform among them" in capsys.readouterr().err


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains(arm: str) -> None:
    condition = next(name for name in ("spike", "half_speed") if ARMS[arm].runs_in(conditions.CONDITIONS[name]))
    found = cell.run(condition, arm, 97, cell.Training(model="logistic", rounds=4, period=4, seeds=2, lr=0.1))
    assert all(0.2 < value < 1 for value in found["plain"] + found["center"] + found["worker"])
    is_equal = arm in ("uniform", "uniform_trains")
    assert found["effective"] == pytest.approx([8.0, 8.0]) if is_equal else max(found["effective"]) < 8
