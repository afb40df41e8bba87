"""Modelled, not measured: what the arms of `experiments.convergence` would cost on GPUs, by `grawa_hvd.cost_model`.

Assumptions: those of `grawa_hvd.hardware.Gpus`; a worker a host, links of 10 Gbit/s; a model of 25.6 M numbers
(ResNet-50), whose step of 16 samples takes 50 ms. SAM takes two such passes a step, a fresh norm one a round.
"""

from __future__ import annotations

from typing import NamedTuple

from experiments.convergence_arms import BATCH, Arm, Setting
from experiments.convergence_runs import plan_of
from grawa_hvd.cost_model import Cluster, Constants, Method, local_seconds, pause, whole
from grawa_hvd.hardware import Gpus

SIZE, COMPUTE, GIGABITS = 4 * 25_600_000, 0.05, 10.0
NETWORK = 4 * (64 * 64 + 64 + 64 * 10 + 10)  # bytes of the perceptron that is trained


class Cost(NamedTuple):
    """Of a run.

    Attributes:
        steps: of each worker; epochs: passes over the training set.
        rounds: rounds, or steps whose gradients are averaged.
        megabytes: that a worker sends for the perceptron: not modelled.
        communication: seconds; seconds: of the whole run. Both modelled.
    """

    steps: int
    epochs: float
    rounds: int
    megabytes: float
    communication: float
    seconds: float


def cost_of(arm: Arm, setting: Setting, workers: int, samples: int, train: int = 1097) -> Cost:
    """What a run costs, in the units of `Cost`."""
    plan = plan_of(arm, workers, samples, setting)
    constants, cluster = Gpus().constants(), Gpus().cluster(workers, 1, GIGABITS)
    compute = COMPUTE * plan.batch_size / BATCH * (2 if arm.ascent else 1)
    if plan.period is None:
        rounds, each, local = plan.steps, whole(SIZE, False, constants, cluster).seconds, compute
    else:
        rounds, each = plan.steps // plan.period, round_seconds(workers)
        local = local_seconds(SIZE, compute, constants, cluster)
    passes = rounds * COMPUTE if arm.scores == "fresh" else 0.0
    sent = 2 * (workers - 1) / workers * NETWORK * rounds / 1e6
    epochs = plan.steps * plan.batch_size * workers / train
    communication = rounds * each
    return Cost(plan.steps, epochs, rounds, sent, communication, plan.steps * local + passes + communication)


def round_seconds(workers: int) -> float:
    """That training waits for a round."""
    return pause(Method("models"), SIZE, COMPUTE, *_where(workers))


def _where(workers: int) -> tuple[Constants, Cluster]:
    return Gpus().constants(), Gpus().cluster(workers, 1, GIGABITS)
