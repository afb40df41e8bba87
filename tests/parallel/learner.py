"""This rank's part of the run that the simulation makes, and the comparison of the two."""

from __future__ import annotations

from typing import Any

import numpy as np
import peers
import torch
from simulation import (
    Array,
    Parameters,
    Scheme,
    Simulation,
    distance_between,
    network_batch,
    network_gradient,
    network_parameters,
)
from torch import Tensor

import grawa_hvd

STEPS = 40
# Four float32 roundings of a parameter a step (gradient, update, proximity, pull), all in one direction: 9.5e-6.
TOLERANCE = 4 * STEPS * 2.0**-24


class Learner:
    """This rank's part of the run that the simulation makes: the same network in float32, the same batches."""

    def __init__(self, scheme: Scheme, **options: Any) -> None:
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        for parameter, start in zip(self.model.parameters(), network_parameters(), strict=True):
            parameter.data.copy_(torch.from_numpy(start))
        self.steps = self.fresh_batches = 0
        if isinstance(options.get("groups"), list):
            owned = list(self.model.parameters())
            options["groups"] = [[owned[index] for index in group] for group in options["groups"]]
        self.optimizer = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(self.model.parameters(), lr=scheme.lr, momentum=scheme.momentum),
            self.model.named_parameters(),
            averaging=scheme.policy, period=scheme.period, pull=scheme.pull, proximity=scheme.proximity,
            outer_momentum=scheme.outer_momentum, scores=self.fresh if scheme.scores == "fresh" else "local",
            overlap=scheme.overlap, fragments=scheme.fragments, local_period=scheme.local_period or None,
            **options,
        )  # fmt: skip

    def backward(self, batch: int) -> Tensor:
        inputs, targets = (torch.from_numpy(array).float() for array in network_batch(peers.rank(), batch))
        loss = torch.nn.functional.mse_loss(self.model(inputs), targets)
        loss.backward()
        return loss

    def fresh(self) -> Tensor:
        self.fresh_batches += 1
        return self.backward(-self.fresh_batches)

    def step(self) -> None:
        self.steps += 1
        self.optimizer.zero_grad()
        self.backward(self.steps)
        self.optimizer.step()

    def parameters(self) -> Parameters:
        return [parameter.detach().double().numpy().copy() for parameter in self.model.parameters()]

    def center(self) -> dict[int, Array]:
        """The index of each parameter that has a centre → its centre."""
        center = self.optimizer.center or {}
        names = [name for name, _ in self.model.named_parameters()]
        return {index: center[name].double().numpy().copy() for index, name in enumerate(names) if name in center}


def relative(found: Parameters, expected: Parameters) -> float:
    return distance_between(found, expected) / distance_between(expected, [np.zeros_like(array) for array in expected])


def compare(scheme: Scheme, layer_of: list[int] | None = None, steps: int = STEPS, **options: Any) -> dict[str, float]:
    """Run both side by side. Nothing is asserted here: a rank that left early would leave the others waiting.

    Returns:
        The largest relative errors of the run; of weights, which are at most 1, the absolute error.
    """
    simulation = Simulation(scheme, [network_parameters()] * peers.size(), network_gradient, layer_of)
    learner = Learner(scheme, **options)
    errors: dict[str, float] = {}

    def note(name: str, error: float) -> None:
        # A NaN must not hide behind a number.
        errors[name] = error if not error <= errors.get(name, 0.0) else errors.get(name, 0.0)

    for _ in range(steps):
        over = len(simulation.rounds)
        simulation.step()
        learner.step()
        note("parameters", relative(learner.parameters(), simulation.workers[peers.rank()]))
        note("rounds", abs(learner.optimizer.rounds - len(simulation.rounds)))
        known = {index: center for index, center in enumerate(simulation.center) if center is not None}
        found = learner.center()
        note("parameters with a center", float(found.keys() != known.keys()))
        if known.keys() == found.keys() and known:
            note("center", relative([*found.values()], [*known.values()]))
        if len(simulation.rounds) == over:
            continue
        expected, report = simulation.rounds[-1], learner.optimizer.last_round
        note("weights", float(np.abs(report.weights.double().numpy() - expected.weights).max()))
        note("step", abs(report.step - expected.step))
        if np.isfinite(expected.distance):
            note("distance", abs(report.distance / expected.distance - 1))
        if scheme.averaging != "uniform":
            note("scores", relative([report.scores.double().numpy()], [expected.scores]))
            if scheme.scores == "fresh":
                note("losses", relative([report.losses.double().numpy()], [expected.losses]))
    return errors


def too_large(errors: dict[str, float], tolerance: float = TOLERANCE) -> dict[str, float]:
    return {name: error for name, error in errors.items() if not error <= tolerance}
