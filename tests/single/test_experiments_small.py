"""The small experiments: the closed form, their parts, and each from its command line, tiny."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from experiments import averaging_frequency, common, digit_splits, norm_vs_gap, scaling, topology, vincent
from experiments.best_weights import best_weights, combined
from experiments.noisy_quadratic import Quadratic, sampled, variance

TINY: dict[str, tuple[Callable[[list[str]], None], list[str], int, list[str]]] = {
    "vincent": (vincent.main, ["--steps", "8"], 6 + 2 * 6, ["vincent.png", "vincent_starts.png"]),
    "averaging_frequency": (
        averaging_frequency.main, ["--steps", "10", "--samples", "100"], 10 + 3 * 2 * 2 * 2 + 3 * 3,
        ["averaging_frequency.png", "averaging_weights.png"],
    ),
    "topology": (topology.main, ["--steps", "4", "--swaps", "50"], 2 + 10, ["topology.png"]),
    "scaling": (scaling.main, ["--gradients", "32", "--workers", "2", "4"], 2 * 3 + 2 * 3, ["scaling.png"]),
    "norm_vs_gap": (norm_vs_gap.main, ["--epochs", "1"], 4 * 3 * 3, ["norm_vs_gap.png"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_each_experiment_writes_its_runs_its_conclusions_and_a_picture(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "NUMBERS", 10)
    main, options, runs, pictures = TINY[name]
    main(["--seeds", "1", "--out", str(tmp_path), *options])
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert (len(content["runs"]), bool(content["summary"])) == (runs, True)
    assert all((tmp_path / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize(("b", "period"), [(0.0, 1), (0.0, 8), (3.0, 1), (3.0, 8)])
def test_the_variance_of_the_average_is_that_of_the_closed_form(b: float, period: int) -> None:
    # A right formula is off by more than 4.5 standard errors once in 100 000 seeds; these are fixed.
    expected = variance(Quadratic(b=b), period, 16 // period)
    found, error = sampled(Quadratic(b=b), period, 16 // period, samples=20000, seed=3)
    assert abs(found - expected) < 4.5 * error < 0.1 * expected


def test_with_equal_noise_everywhere_only_the_number_of_steps_counts() -> None:
    a, eta, sigma, _, _, workers = problem = Quadratic()
    q = 1 - eta * a
    expected = (eta * sigma) ** 2 / workers * (1 - q**128) / (1 - q**2)
    assert [variance(problem, period, 64 // period) for period in (1, 4, 64)] == pytest.approx(
        [expected] * 3, rel=1e-12
    )
    envelope = Quadratic(b=3.0)
    assert variance(envelope, 1, 64) < 0.9 * variance(envelope, 64, 1)


def test_best_weights_are_those_of_the_one_model_that_is_right() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(50, 3)
    models = [nn.Linear(3, 1) for _ in range(3)]
    targets = models[1](inputs).detach()
    weights = best_weights(models, lambda model, data: functional.mse_loss(model(data[0]), data[1]), (inputs, targets))
    assert weights == pytest.approx([0, 1, 0], abs=1e-3)
    assert torch.allclose(combined(models, [0, 1, 0]).weight, models[1].weight)


def test_hessian_norm_is_that_of_autograd() -> None:
    def value(point: torch.Tensor) -> torch.Tensor:
        return -torch.sin(10 * torch.log(point)).mean()

    point = torch.tensor([1.3, 6.9], dtype=torch.float64)
    assert vincent.value((1.3, 6.9)) == pytest.approx(value(point).item())
    hessian = torch.autograd.functional.hessian(value, point)
    assert vincent.hessian_norm((1.3, 6.9)) == pytest.approx(hessian.norm().item())
    assert [vincent.derivative(x) for x in (1.3, 6.9)] == pytest.approx(torch.func.grad(value)(point).tolist())
    assert vincent.value(vincent.bottom((7.5, 0.4))) == pytest.approx(-1)


def test_shares_and_differences_have_intervals() -> None:
    # Wilson's interval of 8 of 10, and Student's of (1, 2, 3): 4.3027 / √3.
    assert common.share(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert common.paired([2, 4, 6], [1, 2, 3]) == pytest.approx((2, 4.3027 / math.sqrt(3)), abs=1e-4)


def test_an_interrupted_experiment_goes_on_and_other_settings_are_refused(tmp_path: Path) -> None:
    calls: list[str] = []

    def case(name: str, result: Any) -> Callable[[], Any]:
        def run() -> Any:
            calls.append(name)
            if result is None:
                raise KeyboardInterrupt
            return result

        return run

    file = tmp_path / "runs.json"
    with pytest.raises(KeyboardInterrupt):
        common.runs(file, {"steps": 3}, {"a": case("a", 1.5), "b": case("b", None)})
    assert common.runs(file, {"steps": 3}, {"a": case("a", 1.5), "b": case("b", [2])}) == {"a": 1.5, "b": [2]}
    assert calls == ["a", "b", "b"]
    with pytest.raises(ValueError, match="other settings"):
        common.runs(file, {"steps": 4}, {})


def test_skewed_shards_have_few_classes_each() -> None:
    train = digit_splits.load(0).train
    shards = digit_splits.skewed(train, 8, alpha=0.1, seed=0)
    most = [labels.bincount(minlength=10).max().item() / len(labels) for _, labels in shards]
    assert {len(labels) for _, labels in shards} == {len(train[1]) // 8}
    assert sum(most) / 8 > 0.4  # of even shards some .13
