"""The papers' comparisons: stacked groups train as simulated ones do; each experiment from its command line, tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import grawa_hvd
from experiments import (
    communication,
    convergence,
    convergence_report,
    digit_splits,
    flatness,
    flatness_report,
    noisy_digits,
    papers_cost,
    per_step,
    per_step_report,
)
from experiments.comparison import family, shown
from experiments.convergence_arms import ARMS
from experiments.papers_verdicts import claims_table, verdict
from experiments.stacked import Groups, Job, Plan
from experiments.stacked_accuracy import Images
from grawa_hvd.averaging import DPPF, EASGD, LGRAWA, LSGD, MGRAWA, DiLoCo, EDiT, Uniform

NESTEROV = partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
# Strengths of pulls are kept in 32 bits among ranks: these are the same in 64.
KINDS: dict[str, dict[str, Any]] = {
    "uniform": {"averaging": Uniform(), "pull": 0.25, "proximity": 0.125},
    "mgrawa": {"averaging": MGRAWA(), "proximity": 0.0},
    "lgrawa": {"averaging": LGRAWA(), "proximity": 0.125},
    "lgrawa, momentum": {"averaging": LGRAWA(), "outer_momentum": 0.5, "pull": 1.0, "proximity": 0.0},
    "uniform, Nesterov": {"averaging": Uniform(), "outer_optimizer": NESTEROV, "proximity": 0.0},
    "easgd": {"averaging": EASGD(0.3), "proximity": 0.0},
    "lsgd": {"averaging": LSGD(), "pull": 0.125, "proximity": 0.125},
    "edit": {"averaging": EDiT(warmup=1), "proximity": 0.0},
    "dppf": {"averaging": DPPF(0.1, 0.05), "proximity": 0.0},
    "diloco": {"averaging": DiLoCo(), "proximity": 0.0},
}


class Dropping(torch.optim.SGD):
    """What `Groups` writes out, by torch: Nesterov momentum, a tenth after half of 24 steps and after 18."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, lr=lr, momentum=0.9, nesterov=True)
        self.taken = 0

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.taken += 1
        if self.taken in (12, 18):
            self.param_groups[0]["lr"] /= 10


def start(seed: int) -> tuple[nn.Module, digit_splits.Pair]:
    images, labels = digit_splits.load(seed).train
    return digit_splits.perceptron(seed, hidden=8).double(), (images[:200].double(), labels[:200])


def alone(seed: int, lr: float, period: int = 4, **given: Any) -> Any:
    model, data = start(seed)
    return grawa_hvd.simulate(
        model, functional.cross_entropy, data, workers=3, batch_size=8, steps=24, period=period, seed=seed,
        optimizer=partial(Dropping, lr=lr), progress=False, **given,
    )  # fmt: skip


def same(stack: dict[str, torch.Tensor], group: int, workers: dict[str, torch.Tensor]) -> None:
    for name, own in workers.items():
        # 24 steps in float64 in another order of sums: roundings of 2^-53, grown by training.
        torch.testing.assert_close(stack[name][3 * group : 3 * group + 3], own, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("scores", ["local", "fresh"])
def test_groups_of_all_kinds_train_as_each_would_in_a_simulation(scores: str) -> None:
    jobs = [Job(*start(seed), seed, 0.05 + 0.02 * seed, **kind) for seed, kind in enumerate(KINDS.values())]
    groups = Groups(jobs, Plan(3, 8, 24, 4, scores))
    groups.train(24, lambda groups: None)
    for number, kind in enumerate(KINDS.values()):
        # A simulation draws no fresh batch for a policy that goes by no norms; a stack draws one for all.
        if scores == "local" or kind["averaging"].needs == LGRAWA.needs:
            same(groups.workers, number, alone(number, 0.05 + 0.02 * number, scores=scores, **kind).workers)


def test_gradient_averaging_is_uniform_averaging_at_every_step() -> None:
    groups = Groups([Job(*start(seed), seed, 0.1) for seed in (0, 1)], Plan(3, 8, 24, None))
    groups.train(24, lambda groups: None)
    for seed in (0, 1):
        plain = alone(seed, 0.1, period=1, averaging="uniform", pull=1.0, proximity=0.0)
        same(groups.workers, seed, plain.workers)


def test_sam_takes_the_gradient_above_along_each_workers_own() -> None:
    model, (images, labels) = start(0)
    groups = Groups([Job(model, (images[:3], labels[:3]), 0, 0.1)], Plan(3, 1, 2, None, ascent=0.5))
    (_, stepped), _ = groups.train(1, lambda groups: {name: value.clone() for name, value in groups.workers.items()})
    total = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for image, label in zip(images[:3], labels[:3], strict=True):
        own = nn.Sequential(*[nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)]).double()
        own.load_state_dict(model.state_dict())
        functional.cross_entropy(own(image[None]), label[None]).backward()
        norm = torch.cat([parameter.grad.flatten() for parameter in own.parameters()]).norm()  # type: ignore[union-attr]
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(0.5 * parameter.grad / norm)  # type: ignore[operator]
        own.zero_grad()
        functional.cross_entropy(own(image[None]), label[None]).backward()
        torch._foreach_add_(total, [parameter.grad / 3 for parameter in own.parameters()])  # type: ignore[operator]
    for (name, parameter), gradient in zip(model.named_parameters(), total, strict=True):
        # The first step of Nesterov's momentum is 1.9 times the gradient; SAM's norm has 1e-12 added.
        torch.testing.assert_close(stepped[name][0], parameter - 0.19 * gradient, rtol=1e-9, atol=1e-11)


def test_a_group_that_diverges_leaves_the_others_alone() -> None:
    jobs = [Job(*start(0), 0, lr, LGRAWA()) for lr in (0.1, 1e200, 0.1)]
    groups = Groups(jobs, Plan(3, 8, 24, 4))
    groups.train(24, lambda groups: None)
    weight = groups.means()["2.weight"].flatten(1)
    assert weight.isfinite().all(dim=1).tolist() == [True, False, True]
    assert torch.equal(weight[0], weight[2])


def content(folder: Path, name: str) -> Any:
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return json.loads((folder / f"{name}.json").read_text())


def test_per_step_tunes_compares_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_step, "ARMS", [arm for arm in per_step.ARMS if arm.period == 64])
    monkeypatch.setattr(per_step, "LRS", (1e-6, 0.1))
    options = ["--seeds", "2", "--steps", "64", "--workers", "2", "--out", str(tmp_path)]
    per_step.main(options)
    found = content(tmp_path, "per_step")
    assert len(found["runs"]) == 2 * (1 + 12)
    summary = found["summary"]
    assert summary["gradients, 2 workers: lr"] == 0.1  # the other one learns nothing
    own, mean = (summary["uniform, period 64, pull 0.5, outer none, 2 workers"][which] for which in ("own", "mean"))
    assert own != mean  # one is of before the round
    table = per_step_report.arms_table(summary, 2)
    assert table.count("\n") == 1 + 1 + 12
    assert per_step_report.effects_table(summary, [2]).count("\n") == 1 + 5
    finished = (tmp_path / "per_step.json").read_text()
    monkeypatch.setattr(per_step, "runs", pytest.fail)  # nothing is run a second time
    per_step.main(options)
    assert (tmp_path / "per_step.json").read_text() == finished


def test_convergence_flatness_and_communication_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "LRS", (0.1, 1e-6))
    monkeypatch.setattr(flatness, "ITERATIONS", 5)
    out = ["--out", str(tmp_path)]
    convergence.main(["--seeds", "2", "--samples", "1024", "--workers", "2", *out])
    runs = content(tmp_path, "convergence")["runs"]
    grids = sum(4 if arm.averages == "models" else 0 for arm in ARMS.values())
    assert len(runs) == (len(ARMS) + 2 * 2) + grids + len(ARMS) + 5
    flatness.main(["--vectors", "2", *out])
    communication.main(out)
    errors, flat, waits = (content(tmp_path, name)["summary"] for name in ("convergence", "flatness", "communication"))
    assert {errors[f"{name}, 2 workers"]["lr"] for name in ARMS} == {0.1}  # the other one learns nothing
    assert flat["DP+SGD, 2 workers"]["norm"] > 0
    # 1024 samples are 32 steps of two workers, at period 16 two rounds.
    assert waits["LGRAWA, 2 workers, equal"]["rounds"] == 2
    tables = [convergence_report.pairs_table(errors, 2), flatness_report.ratios_table(flat, [2])]
    assert [table.count("\n") for table in tables] == [len(ARMS), 1 + 4]
    assert claims_table(errors, flat, waits, [2]).count("\n") == 1 + 8 + 6 + 2
    runs["uniform, 2 workers"][0]["test"] += 1
    (tmp_path / "convergence.json").write_text(json.dumps({**content(tmp_path, "convergence"), "runs": runs}))
    (tmp_path / "flatness.json").unlink()
    with pytest.raises(ValueError, match=r"must end with the errors of convergence\.json"):
        flatness.main(["--vectors", "2", *out])


def test_a_fifth_of_the_training_labels_is_wrong_and_no_label_to_choose_by() -> None:
    right, noisy = digit_splits.load(3), noisy_digits.load(3)
    share = (right.train[1] != noisy.train[1]).double().mean()
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 1097) ** 0.5  # four standard errors
    assert torch.equal(right.validation[1], noisy.validation[1])
    assert torch.equal(right.test[1], noisy.test[1])


def test_accuracies_are_those_of_each_group_on_its_own_images() -> None:
    jobs = [Job(*start(seed), seed, 0.1) for seed in (0, 1)]
    groups = Groups(jobs, Plan(3, 8, 24, 8))
    groups.train(24, lambda groups: None)
    tests = [
        tuple(part.double() if part.is_floating_point() else part for part in digit_splits.load(s).test) for s in (0, 1)
    ]
    images = Images.of(tests)  # type: ignore[arg-type]
    for seed, found in enumerate(images.of_means(groups).tolist()):
        model = start(seed)[0]
        model.load_state_dict({name: value[seed] for name, value in groups.means().items()})
        assert found == pytest.approx(digit_splits.accuracy(model, tests[seed]), abs=1e-6)
    groups.workers["0.weight"][0] = torch.nan
    assert images.of_means(groups)[0] == 0 < images.of_means(groups)[1]


def test_rounds_cost_what_the_cost_model_says() -> None:
    fresh, local = (papers_cost.cost_of(ARMS[name], {"period": 16}, 4, 40960) for name in ("LGRAWA", "LGRAWA, local"))
    assert (fresh.steps, fresh.rounds) == (local.steps, local.rounds) == (640, 40)
    assert fresh.seconds - local.seconds == pytest.approx(40 * papers_cost.COMPUTE)
    # A ring sends 2·3/4 of the perceptron's 4810 numbers from each worker.
    assert local.megabytes == pytest.approx(40 * 1.5 * 4 * 4810 / 1e6)
    every_step = papers_cost.cost_of(ARMS["DP+SGD"], {"batch": 16}, 4, 40960)
    assert every_step.communication > 15 * local.communication


def test_families_are_corrected_and_verdicts_follow() -> None:
    steady, swinging = [1.0 + 0.01 * n for n in range(10)], [(-1.0) ** n for n in range(10)]
    zero = [0.0] * 10
    found = family({"up": (steady, zero), "down": (zero, steady), "nothing": (swinging, zero)})
    assert found["up"]["p"] == pytest.approx(2 / 2**10, abs=1e-6)
    assert found["up"]["holm"] == pytest.approx(3 * found["up"]["p"], rel=1e-3)
    assert (shown(found["up"])[:2], shown(found["nothing"])[:2]) == ("**", "0.")
    assert verdict([found["nothing"]]) == "not seen"
    assert verdict([found["down"], found["nothing"]]) == "seen in 1 of 2"
    assert verdict([found["up"]]) == "**contrary** in 1 of 1"
    assert per_step_report.pace(found["up"]) == "ahead"
    assert per_step_report.pace(found["down"]) == "lags"
