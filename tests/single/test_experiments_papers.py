"""The papers' comparisons: stacked groups train as simulated ones do; each experiment from its command line, tiny."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import grawa_hvd
from experiments import digit_splits
from experiments.stacked import Groups, Job, Plan
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
