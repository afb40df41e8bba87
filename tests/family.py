"""What the papers of the averaging policies say, written once more in float64 numpy, and what workers are given for it.

Every worker makes steps of SGD on gradients drawn by rank and step, and reports numbers drawn likewise. A paper's round
is a function of the parameters of all workers, one vector a layer, of the centre and of what was reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from grawa_hvd.averaging import policy
from grawa_hvd.averaging.edit import EDiT
from grawa_hvd.averaging.weighted import Weighted

SIZES, LR, PERIOD, STEPS, PULL = (5, 3), 0.1, 4, 40, 0.5

Array = np.ndarray
Model = list[Array]


@dataclass
class Run:
    """The state of all workers at a round.

    Attributes:
        workers: their parameters; center: None before the first round of a policy that starts with one.
        losses, accuracies, samples: what they reported since the last round, [M].
        memory: what the policy remembers.
    """

    workers: list[Model]
    center: Model | None
    losses: Array = field(default_factory=lambda: np.zeros(0))
    accuracies: Array = field(default_factory=lambda: np.zeros(0))
    samples: Array = field(default_factory=lambda: np.zeros(0))
    memory: dict[str, Any] = field(default_factory=dict)

    def blend(self, weights: Array) -> Model:
        """Σ_m weights[m, l]·x[m, l]."""
        return [sum(w * x[layer] for w, x in zip(weights[:, layer], self.workers, strict=True))
                for layer in range(len(SIZES))]  # fmt: skip

    def ways(self) -> Array:
        """‖x[m, l] − c[l]‖, [M, L]; zeros without a centre."""
        if self.center is None:
            return np.zeros((len(self.workers), len(SIZES)))
        return np.array([[np.linalg.norm(a - c) for a, c in zip(x, self.center, strict=True)] for x in self.workers])

    def pull_to(self, center: Model, part: Callable[[Model], float] = lambda x: PULL) -> None:
        """x ← x + part·(c − x), toward the new centre."""
        self.workers = [[a + part(x) * (c - a) for a, c in zip(x, center, strict=True)] for x in self.workers]
        self.center = center

    def each(self, one: Array) -> Array:
        """One number a worker, for all layers."""
        return np.repeat(one[:, None], len(SIZES), axis=1)


def easgd(run: Run) -> None:
    alpha, center = 0.43 / len(run.workers), run.center
    assert center is not None
    total = [sum(x[layer] - center[layer] for x in run.workers) for layer in range(len(SIZES))]
    run.workers = [[a - alpha * (a - c) for a, c in zip(x, center, strict=True)] for x in run.workers]
    run.center = [c + alpha * t for c, t in zip(center, total, strict=True)]


def lsgd(run: Run) -> None:
    window = run.memory.setdefault("losses", [])
    window.append(run.losses)
    leader = int(np.mean(window[-4:], axis=0).argmin())
    run.pull_to([a.copy() for a in run.workers[leader]])


def weighted(run: Run, by: str, power: float = 1.0) -> None:
    told = {"samples": run.samples**power, "accuracy": run.accuracies**power, "loss": np.exp(-run.losses / 0.5)}[by]
    run.pull_to(run.blend(run.each(told / told.sum())))


def mediancap(run: Run) -> None:
    ways = run.ways()
    share = np.ones_like(ways) if run.center is None else np.minimum(1, np.median(ways, axis=0) / ways)
    run.pull_to(run.blend(share / share.sum(axis=0)))


def edit(run: Run) -> None:
    ways, memory, threshold = run.ways(), run.memory, 0.5
    weights = np.exp(-ways / 2.0)
    if run.center is not None:
        rounds = memory.setdefault("rounds", 0)
        if rounds == 0:
            memory.update(mean=ways, variance=np.zeros_like(ways), outliers=0)
        above = ways > memory["mean"] + threshold * np.sqrt(memory["variance"])
        above &= rounds >= 3
        outlier = above & ~above.all(axis=0)
        weights = np.where(outlier, 0.0, weights)
        step = ways - memory["mean"]
        memory["variance"] = np.where(above, memory["variance"], 0.9 * memory["variance"] + 0.1 * step**2)
        memory["mean"] = np.where(above, memory["mean"], memory["mean"] + 0.1 * step)
        memory.update(rounds=rounds + 1, outliers=memory["outliers"] + outlier.sum())
    run.pull_to(run.blend(weights / weights.sum(axis=0)))


def dppf(run: Run) -> None:
    mean = run.blend(np.full((len(run.workers), len(SIZES)), 1 / len(run.workers)))

    def part(x: Model) -> float:
        return 0.5 - 0.1 / float(np.linalg.norm(np.concatenate([a - c for a, c in zip(x, mean, strict=True)])))

    run.pull_to(mean, part)


@dataclass(frozen=True)
class Case:
    """A policy and its paper's round.

    Attributes:
        averaging: the policy; round: of the paper.
        starts_with_center: whether the centre is at first the parameters of the first step.
    """

    averaging: Any
    round: Callable[[Run], None]
    starts_with_center: bool = False


CASES = {
    "easgd": Case(policy("easgd"), easgd, starts_with_center=True),
    "lsgd": Case(policy("lsgd"), lsgd),
    "samples": Case(Weighted(), lambda run: weighted(run, "samples")),
    "tokens": Case(Weighted(power=2), lambda run: weighted(run, "samples", 2)),
    "accuracy": Case(Weighted(by="accuracy", power=8), lambda run: weighted(run, "accuracy", 8)),
    "loss": Case(Weighted(by="loss", temperature=0.5), lambda run: weighted(run, "loss")),
    "a function": Case(Weighted(by=lambda observed: observed.samples), lambda run: weighted(run, "samples")),
    "mediancap": Case(policy("mediancap"), mediancap),
    "edit": Case(EDiT(temperature=2.0, threshold=0.5, decay=0.9, warmup=3), edit),
    "dppf": Case(policy("dppf"), dppf),
}


def start() -> Model:
    """The parameters of all workers at first."""
    generator = np.random.default_rng(7)
    return [generator.normal(size=size) for size in SIZES]


def gradient(worker: int, step: int) -> Model:
    """Of one worker at one step; some workers' are larger than others'."""
    generator = np.random.default_rng(1000 * worker + step)
    return [(1 + worker) * generator.normal(size=size) for size in SIZES]


def told(worker: int, step: int) -> tuple[float, float, int]:
    """Loss, accuracy and samples that a worker reports at one step."""
    generator = np.random.default_rng((3, worker, step))
    return generator.uniform(0.5, 2.0), generator.uniform(0.1, 1.0), int(generator.integers(1, 64))


def simulated(case: Case, workers: int) -> Run:
    """All workers after `STEPS` steps, as the paper says."""
    run = Run([start() for _ in range(workers)], start() if case.starts_with_center else None)
    for step in range(STEPS):
        run.workers = [
            [a - LR * g for a, g in zip(x, gradient(worker, step), strict=True)] for worker, x in enumerate(run.workers)
        ]
        if (step + 1) % PERIOD == 0:
            reports = np.array(
                [[told(worker, s) for s in range(step + 1 - PERIOD, step + 1)] for worker in range(workers)]
            )
            run.losses, run.accuracies = reports[:, :, 0].mean(axis=1), reports[:, :, 1].mean(axis=1)
            run.samples = reports[:, :, 2].sum(axis=1)
            case.round(run)
    return run


def train(case: Case, rank: int, wrap: Callable[..., Any]) -> tuple[Model, Model]:
    """One worker after `STEPS` steps: its parameters, and the centre.

    Args:
        case: the policy; rank: of the worker.
        wrap: makes the averaging optimizer of a plain one, the named parameters and options.
    """
    model = torch.nn.ParameterList([torch.from_numpy(a) for a in start()])
    optimizer = wrap(
        torch.optim.SGD(model.parameters(), lr=LR), model.named_parameters(), averaging=case.averaging, period=PERIOD,
        pull=PULL, proximity=0.0,
    )  # fmt: skip
    for step in range(STEPS):
        for parameter, g in zip(model, gradient(rank, step), strict=True):
            parameter.grad = torch.from_numpy(g)
        loss, accuracy, samples = told(rank, step)
        optimizer.report(loss=loss, accuracy=accuracy, samples=samples)
        optimizer.step()
    return [p.detach().numpy() for p in model], [c.numpy() for c in optimizer.center.values()]


def check(case: Case, rank: int, workers: int, found: tuple[Model, Model]) -> None:
    """Compare a worker with its paper, relative to the largest number there."""
    run = simulated(case, workers)
    assert run.center is not None
    for own, expected in zip([*found[0], *found[1]], [*run.workers[rank], *run.center], strict=True):
        # Thousands of roundings of float64 at most, where 1e-4 is asked for.
        assert np.abs(own - expected).max() <= 1e-11 * np.abs(expected).max()
