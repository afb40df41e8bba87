"""All workers of a run in one process, in float64 and formula by formula: what the optimizer must compute.

Written from the formulas alone, so that it can disagree with the library.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from grawa_hvd.averaging import Mix, NormAveraging, policy

Array = NDArray[np.float64]
Parameters = list[Array]
# A worker, a batch and its parameters → its loss and gradient. Batch t > 0 is that of local step t, −r < 0 the fresh
# batch of round r.
Gradient = Callable[[int, int, Parameters], tuple[float, Parameters]]

LOCAL_DECAY = 0.85
FRESH_DECAY = 0.43


@dataclass(frozen=True)
class Scheme:
    """What `DistributedGrawaOptimizer` is told, and the SGD that it wraps.

    Attributes:
        fragment_of: the fragment of each layer, F of them in all; empty for a model averaged in one piece.
        host_of: the host of each worker, where workers of a host average every `local_period` steps; 0 for never.
    """

    averaging: str = "lgrawa"
    scores: str = "local"
    period: int = 4
    pull: float = 0.5
    proximity: float = 0.01
    outer_momentum: float = 0.0
    lr: float = 0.1
    momentum: float = 0.0
    floor: float = 1.0
    overlap: int = 0
    fragment_of: tuple[int, ...] = ()
    host_of: tuple[int, ...] = ()
    local_period: int = 0

    @property
    def policy(self) -> Mix:
        """Who counts how much, as an object."""
        plain = policy(self.averaging)
        return replace(plain, floor=self.floor) if isinstance(plain, NormAveraging) else plain

    @property
    def fragments(self) -> int:
        """F."""
        return 1 + max(self.fragment_of, default=0)

    def due(self, step: int) -> int | None:
        """The fragment whose round starts after this step: f at step ⌈(f+1)·τ/F⌉ of each cycle."""
        within = (step - 1) % self.period + 1
        starts = [-(-(fragment + 1) * self.period // self.fragments) for fragment in range(self.fragments)]
        return starts.index(within) if within in starts else None

    def due_within_hosts(self, step: int) -> bool:
        """Whether workers of a host average after this step: every τ_l-th of a cycle, if no common round starts."""
        within = (step - 1) % self.period + 1
        return self.local_period > 0 and within % self.local_period == 0 and self.due(step) is None


@dataclass(frozen=True)
class Round:
    """What a common round observed and did: weights and scores are [M, the fragment's layers], losses [M].

    `distance` is the mean ‖x − c‖ over the workers just before the last pull before this round.
    """

    step: int
    weights: Array
    scores: Array
    losses: Array
    distance: float


@dataclass(frozen=True)
class Underway:
    """A round that has started: Σβx, and what each worker had then, for the parameters of its fragment."""

    until: int
    indices: list[int]
    sums: Parameters
    before: list[Parameters]
    round: Round


class Simulation:
    """M workers that train side by side.

    Args:
        scheme: how they train and average.
        start: each worker's parameters.
        gradient: what they learn from.
        layer_of: the layer of each parameter; by default each is one.

    Attributes:
        workers: the parameters of each.
        center: of each parameter; None before its first round.
        rounds: the common rounds that are over.
    """

    def __init__(
        self, scheme: Scheme, start: list[Parameters], gradient: Gradient, layer_of: list[int] | None = None
    ) -> None:
        self.scheme, self.gradient = scheme, gradient
        self.workers = [[parameter.copy() for parameter in worker] for worker in start]
        self.layer_of = np.arange(len(start[0])) if layer_of is None else np.array(layer_of)
        self.layers = int(self.layer_of.max()) + 1
        self.fragment_of = np.array(scheme.fragment_of or [0] * self.layers)
        self.momenta = [[np.zeros_like(parameter) for parameter in worker] for worker in start]
        self.center: list[Array | None] = [None] * len(start[0])
        self.velocity: Parameters = [np.zeros_like(parameter) for parameter in start[0]]
        self.steps = self.fresh_batches = 0
        self.rounds: list[Round] = []
        self.underway: list[Underway] = []
        self.distance = np.nan
        self.norm_average = np.zeros((len(start), self.layers))
        self.observations = np.zeros((len(start), self.layers))

    def step(self) -> None:
        """One local step of every worker, then the end of the rounds that come to it, then the round that is due."""
        scheme = self.scheme
        self.steps += 1
        norms = []
        for number, worker in enumerate(self.workers):
            _, gradients = self.gradient(number, self.steps, worker)
            norms.append(self._layer_norms(gradients))
            for index, gradient in enumerate(gradients):
                self.momenta[number][index] = scheme.momentum * self.momenta[number][index] + gradient
                worker[index] = worker[index] - scheme.lr * self.momenta[number][index]
                center = self.center[index]
                if center is not None:
                    worker[index] += scheme.proximity / scheme.period * (center - worker[index])
        if scheme.scores == "local":
            self._observe(np.array(norms), LOCAL_DECAY, np.arange(self.layers))
        while self.underway and self.underway[0].until == self.steps:
            self._finish(self.underway.pop(0))
        fragment = scheme.due(self.steps)
        if fragment is not None:
            self._start(fragment)
            if scheme.overlap == 0:
                self._finish(self.underway.pop())
        elif scheme.due_within_hosts(self.steps):
            self._average_within_hosts()

    def _layer_norms(self, gradients: Parameters) -> Array:
        squares = np.zeros(self.layers)
        for layer, gradient in zip(self.layer_of, gradients, strict=True):
            squares[layer] += (gradient**2).sum()
        return np.sqrt(squares)

    def _observe(self, norms: Array, decay: float, layers: NDArray[np.int64]) -> None:
        """e ← ρe + (1−ρ)n, of these layers."""
        self.observations[:, layers] += 1
        self.norm_average[:, layers] = decay * self.norm_average[:, layers] + (1 - decay) * norms[:, layers]

    def _estimates(self) -> Array:
        """ê = e / (1−ρ^k); 0 where there was nothing to observe yet."""
        decay = LOCAL_DECAY if self.scheme.scores == "local" else FRESH_DECAY
        seen = self.observations > 0
        return np.where(seen, self.norm_average / np.where(seen, 1 - decay**self.observations, 1), 0)

    def _forget(self, workers: list[int], layers: NDArray[np.int64]) -> None:
        """Norms of the local gradients are estimated anew after each round."""
        if self.scheme.scores == "local":
            self.norm_average[np.ix_(workers, layers)] = 0
            self.observations[np.ix_(workers, layers)] = 0

    def _take_fresh_batches(self, layers: NDArray[np.int64]) -> Array:
        """One a worker, if they are what norms are taken of; returns the losses."""
        if self.scheme.scores == "local":
            return np.full(len(self.workers), np.nan)
        self.fresh_batches += 1
        taken = [self.gradient(m, -self.fresh_batches, worker) for m, worker in enumerate(self.workers)]
        self._observe(np.array([self._layer_norms(gradients) for _, gradients in taken]), FRESH_DECAY, layers)
        return np.array([loss for loss, _ in taken])

    def _start(self, fragment: int) -> None:
        """Start the round of a fragment: weigh, and sum what the workers are now."""
        layers = np.flatnonzero(self.fragment_of == fragment)
        losses = self._take_fresh_batches(layers)
        scores = _scores(self.scheme.averaging, self._estimates())
        weights = _weights(scores, self.scheme.floor)
        indices = [index for index, layer in enumerate(self.layer_of) if layer in layers]
        self.underway.append(
            Underway(
                self.steps + self.scheme.overlap,
                indices,
                [self._weighted_sum(weights, index, range(len(self.workers))) for index in indices],
                [[worker[index].copy() for index in indices] for worker in self.workers],
                Round(self.steps, weights[:, layers], scores[:, layers], losses, self.distance),
            )
        )
        self._forget([*range(len(self.workers))], layers)

    def _weighted_sum(self, weights: Array, index: int, workers: Iterable[int]) -> Array:
        total = np.zeros_like(self.workers[0][index])
        for row, worker in enumerate(workers):
            total = total + weights[row, self.layer_of[index]] * self.workers[worker][index]
        return total

    def _finish(self, underway: Underway) -> None:
        """Move the centre, then x ← x + λ·(c − x_t), x_t being what the worker was when the round started."""
        moved = [
            self._moved_center(index, target) for index, target in zip(underway.indices, underway.sums, strict=True)
        ]
        for worker, before in zip(self.workers, underway.before, strict=True):
            for index, center, old in zip(underway.indices, moved, before, strict=True):
                worker[index] = worker[index] + self.scheme.pull * (center - old)
        self.distance = float(np.mean([distance_between(before, moved) for before in underway.before]))
        self.rounds.append(underway.round)

    def _moved_center(self, index: int, target: Array) -> Array:
        """v ← η·v + (c − c_old), c ← c_old + v; the first round of a parameter has v = 0."""
        old = self.center[index]
        if old is not None:
            self.velocity[index] = self.scheme.outer_momentum * self.velocity[index] + (target - old)
            target = old + self.velocity[index]
        self.center[index] = target
        return target

    def _average_within_hosts(self) -> None:
        """x ← (1 − λ)·x + λ·c_host, by the same policy; a worker that is alone on its host goes on as it is."""
        every_layer = np.arange(self.layers)
        self._take_fresh_batches(every_layer)
        for host in sorted(set(self.scheme.host_of)):
            members = [worker for worker, own in enumerate(self.scheme.host_of) if own == host]
            if len(members) == 1:
                continue
            scores = _scores(self.scheme.averaging, self._estimates()[members])
            weights = _weights(scores, self.scheme.floor)
            for index in range(len(self.layer_of)):
                center = self._weighted_sum(weights, index, members)
                for worker in members:
                    mine = self.workers[worker]
                    mine[index] = (1 - self.scheme.pull) * mine[index] + self.scheme.pull * center
            self._forget(members, every_layer)


def _scores(averaging: str, estimates: Array) -> Array:
    by_policy = {
        "lgrawa": estimates,
        "mgrawa": np.broadcast_to(estimates.sum(axis=1, keepdims=True), estimates.shape),
        "grawa": np.broadcast_to(np.sqrt((estimates**2).sum(axis=1, keepdims=True)), estimates.shape),
        "uniform": np.ones_like(estimates),
    }
    return by_policy[averaging]


def _weights(scores: Array, floor: float) -> Array:
    """β[m,l] = (1/s[m,l]) / Σ_j (1/s[j,l]), each s at least the floor's part of the median of those above zero.

    A zero score says nothing: weight 0, or 1/M where all are zero.
    """
    if floor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a column of zeros
            least = floor * np.nanmedian(np.where(scores > 0, scores, np.nan), axis=0)
        scores = np.where(scores > 0, np.maximum(scores, least), scores)
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
