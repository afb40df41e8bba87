"""All workers of a run in one process, in float64 and formula by formula (DESIGN §2): what the optimizer must compute.

Written from the formulas alone, so that it can disagree with the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Parameters = list[Array]
# A worker, a batch and its parameters → its loss and gradient. Batch t > 0 is that of local step t, −r < 0 the fresh
# batch of round r.
Gradient = Callable[[int, int, Parameters], tuple[float, Parameters]]

LOCAL_DECAY = 0.85
FRESH_DECAY = 0.43


@dataclass(frozen=True)
class Scheme:
    """What `DistributedGrawaOptimizer` is told, and the SGD that it wraps."""

    averaging: str = "lgrawa"
    scores: str = "local"
    period: int = 4
    pull: float = 0.5
    proximity: float = 0.01
    outer_momentum: float = 0.0
    lr: float = 0.1
    momentum: float = 0.0


@dataclass(frozen=True)
class Round:
    """What a round observed and did: weights and scores are [M, L], losses (of the fresh batches) [M]."""

    step: int
    weights: Array
    scores: Array
    losses: Array
    distance: float


class Simulation:
    """M workers that train side by side.

    Args:
        scheme: how they train and average.
        start: each worker's parameters.
        gradient: what they learn from.
        layer_of: the layer of each parameter; by default each is one.
    """

    def __init__(
        self, scheme: Scheme, start: list[Parameters], gradient: Gradient, layer_of: list[int] | None = None
    ) -> None:
        self.scheme, self.gradient = scheme, gradient
        self.workers = [[parameter.copy() for parameter in worker] for worker in start]
        self.layer_of = np.arange(len(start[0])) if layer_of is None else np.array(layer_of)
        self.momenta = [[np.zeros_like(parameter) for parameter in worker] for worker in start]
        self.center: Parameters | None = None
        self.velocity: Parameters = [np.zeros_like(parameter) for parameter in start[0]]
        self.steps = 0
        self.rounds: list[Round] = []
        self._forget_norms()

    def step(self) -> None:
        """One local step of every worker, and a round after every τ-th."""
        scheme = self.scheme
        self.steps += 1
        norms = []
        for number, worker in enumerate(self.workers):
            _, gradients = self.gradient(number, self.steps, worker)
            norms.append(self._layer_norms(gradients))
            for index, gradient in enumerate(gradients):
                self.momenta[number][index] = scheme.momentum * self.momenta[number][index] + gradient
                worker[index] = worker[index] - scheme.lr * self.momenta[number][index]
                if self.center is not None:
                    worker[index] += scheme.proximity / scheme.period * (self.center[index] - worker[index])
        if scheme.scores == "local":
            self._observe(np.array(norms), LOCAL_DECAY)
        if self.steps % scheme.period == 0:
            self._round()

    def _layer_norms(self, gradients: Parameters) -> Array:
        squares = np.zeros(self.layer_of.max() + 1)
        for layer, gradient in zip(self.layer_of, gradients, strict=True):
            squares[layer] += (gradient**2).sum()
        return np.sqrt(squares)

    def _forget_norms(self) -> None:
        self.norm_average = np.zeros((len(self.workers), self.layer_of.max() + 1))
        self.observations = 0

    def _observe(self, norms: Array, decay: float) -> None:
        """e ← ρe + (1−ρ)n; ê = e / (1−ρ^k)."""
        self.observations += 1
        self.norm_average = decay * self.norm_average + (1 - decay) * norms
        self.estimates = self.norm_average / (1 - decay**self.observations)

    def _round(self) -> None:
        losses = np.full(len(self.workers), np.nan)
        if self.scheme.scores == "fresh":
            taken = [self.gradient(m, -len(self.rounds) - 1, worker) for m, worker in enumerate(self.workers)]
            losses = np.array([loss for loss, _ in taken])
            self._observe(np.array([self._layer_norms(gradients) for _, gradients in taken]), FRESH_DECAY)
        scores = _scores(self.scheme.averaging, self.estimates)
        weights = _weights(scores)
        center = [
            sum(weights[m, self.layer_of[index]] * worker[index] for m, worker in enumerate(self.workers))
            for index in range(len(self.layer_of))
        ]
        self._move_center(center)
        distance = float(np.mean([distance_between(worker, self.center) for worker in self.workers]))
        for worker in self.workers:
            for index, target in enumerate(self.center):
                worker[index] = (1 - self.scheme.pull) * worker[index] + self.scheme.pull * target
        self.rounds.append(Round(self.steps, weights, scores, losses, distance))
        if self.scheme.scores == "local":
            self._forget_norms()

    def _move_center(self, center: Parameters) -> None:
        """v ← η·v + (c − c_old), c ← c_old + v; the first round has v = 0."""
        if self.center is not None:
            self.velocity = [
                self.scheme.outer_momentum * v + (new - old)
                for v, new, old in zip(self.velocity, center, self.center, strict=True)
            ]
            center = [old + v for old, v in zip(self.center, self.velocity, strict=True)]
        self.center = center


def _scores(averaging: str, estimates: Array) -> Array:
    by_policy = {
        "lgrawa": estimates,
        "mgrawa": np.broadcast_to(estimates.sum(axis=1, keepdims=True), estimates.shape),
        "grawa": np.broadcast_to(np.sqrt((estimates**2).sum(axis=1, keepdims=True)), estimates.shape),
        "uniform": np.ones_like(estimates),
    }
    return by_policy[averaging]


def _weights(scores: Array) -> Array:
    """β[m,l] = (1/s[m,l]) / Σ_j (1/s[j,l]); a zero score says nothing: weight 0, or 1/M where all are zero."""
    with np.errstate(divide="ignore"):
        inverse = np.where(scores > 0, 1 / scores, 0.0)
    inverse = np.where((scores > 0).any(axis=0), inverse, 1.0)
    return inverse / inverse.sum(axis=0)


def distance_between(one: Parameters, other: Parameters) -> float:
    """‖one − other‖ over all parameters."""
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(one, other, strict=True))))


# What the workers of the tests learn: a network of two layers, W₂·tanh(W₁·x + b₁) + b₂, on batches of their own.

INPUTS, HIDDEN, OUTPUTS, BATCH = 6, 8, 3, 10


def network_parameters() -> Parameters:
    """W₁, b₁, W₂, b₂; exact in float32."""
    rng = np.random.default_rng(7)
    shapes = [(HIDDEN, INPUTS), (HIDDEN,), (OUTPUTS, HIDDEN), (OUTPUTS,)]
    return [rng.normal(0, 0.5, shape).astype(np.float32).astype(np.float64) for shape in shapes]


def network_batch(worker: int, batch: int) -> tuple[Array, Array]:
    """Inputs and targets, exact in float32; workers differ in noise and scale, hence in gradient norms."""
    rng = np.random.default_rng([worker, batch + 10**6])
    inputs = rng.normal(0, 1 + 0.3 * worker, (BATCH, INPUTS))
    targets = np.sin(inputs[:, :OUTPUTS]) + rng.normal(0, 0.2 * (1 + worker), (BATCH, OUTPUTS))
    return inputs.astype(np.float32).astype(np.float64), targets.astype(np.float32).astype(np.float64)


def network_gradient(worker: int, batch: int, parameters: Parameters) -> tuple[float, Parameters]:
    """Mean squared error and its gradient, by hand."""
    first, first_bias, second, second_bias = parameters
    inputs, targets = network_batch(worker, batch)
    hidden = np.tanh(inputs @ first.T + first_bias)
    error = hidden @ second.T + second_bias - targets
    to_output = 2 * error / error.size
    to_hidden = (to_output @ second) * (1 - hidden**2)
    gradients = [to_hidden.T @ inputs, to_hidden.sum(axis=0), to_output.T @ hidden, to_output.sum(axis=0)]
    return float((error**2).mean()), gradients
