"""Runs of `experiments.convergence`: of one arm and period, many settings, learning rates and seeds at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from experiments import digit_splits, noisy_digits
from experiments.convergence_arms import BATCH, Arm, Setting
from experiments.stacked import Groups, Job, Plan
from experiments.stacked_accuracy import Images
from grawa_hvd.averaging import Uniform

HIDDEN, LOOKS = 64, 20


class Run(NamedTuple):
    """One of a stack; all of a stack have the same period and batch."""

    setting: Setting
    lr: float
    seed: int


def stack(arm: Arm, workers: int, samples: int, runs: Sequence[Run], is_control: bool = False) -> Groups:
    """The groups, about to train.

    Args:
        arm: how.
        workers: of a group.
        samples: of all workers and steps together.
        runs: settings, learning rates and seeds.
        is_control: whether weights are uniform instead. Beside fresh norms, which cost a gradient a round, so many
            more steps are made.
    """
    jobs = []
    for run in runs:
        given = arm.job(**{name: value for name, value in run.setting.items() if name != "period"})
        if is_control:
            given["averaging"] = Uniform()
        start = digit_splits.perceptron(run.seed, HIDDEN)
        jobs.append(Job(start, noisy_digits.load(run.seed).train, run.seed, run.lr, **given))
    return Groups(jobs, plan_of(arm, workers, samples, runs[0].setting, is_control))


def plan_of(arm: Arm, workers: int, samples: int, setting: Setting, is_control: bool = False) -> Plan:
    """How many steps of what batch."""
    batch = int(setting.get("batch", BATCH))
    period = int(setting["period"]) if arm.averages == "models" else None
    steps = samples // (workers * batch)
    if is_control and arm.scores == "fresh" and period is not None:
        steps = (steps + steps // period) // period * period
    return Plan(workers, batch, steps, period, "local" if is_control else arm.scores, arm.ascent)


def measured(groups: Groups, runs: Sequence[Run], parts: Sequence[str] = ("test", "noisy_test", "train")) -> list[Any]:
    """Train, and tell errors in percent.

    Args:
        groups: of the runs.
        runs: see `stack`.
        parts: of the data; "test" comes first, if it is one.

    Returns:
        For each run the error of the mean of the workers on each part of the data at the end, and on test images over
        the steps ("curve"), if that is a part.
    """
    images = {part: Images.of([getattr(noisy_digits.load(run.seed), part) for run in runs]) for part in parts}
    has_curve = "test" in parts
    every = max(1, groups.plan.steps // LOOKS) if has_curve else groups.plan.steps
    looks = groups.train(every, images[parts[0]].of_means)
    found = [dict[str, Any]() for _ in runs]
    for part, each in images.items():
        for result, accuracy in zip(found, each.of_means(groups).tolist(), strict=True):
            result[part] = round(100 * (1 - accuracy), 4)
    if has_curve:
        curves = 100 * (1 - torch.stack([look for _, look in looks[:LOOKS]], dim=1))
        for result, curve in zip(found, curves.tolist(), strict=True):
            result["curve"] = [round(error, 3) for error in curve]
    return found
