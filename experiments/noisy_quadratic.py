"""The variance of averaged SGD on a noisy quadratic, in closed form and by simulation.

M workers minimise ½·a·x² by SGD, x ← x − η·(a·x + √(σ² + b²·x²)·ξ), ξ ~ N(0, 1) drawn by each worker at each step,
and start from one x₀. With b = 0 the noise of the gradient is the same everywhere; with b > 0 it grows away from the
minimum (the "variance envelope" of Zhang, De Sa, Mitliagkas & Ré, "Parallel SGD: When does averaging help?", arXiv
1606.07365).

**Derivation.** Let q = 1 − ηa. A step multiplies E[x] by q. The square of a worker, and the product of two workers,
obey

    E[x²] ← (q² + η²b²)·E[x²] + η²σ²,      E[x·y] ← q²·E[x·y],

since noises are independent of each other and of x, y. Let s = E[x²] be that of the common model after a round, and p
= q² + η²b². After τ steps

    E[x²] = p^τ·s + η²σ²·(1 − p^τ)/(1 − p),      E[x·y] = q^(2τ)·s.

The average of the M workers has the second moment (E[x²] + (M − 1)·E[x·y])/M. So a round of τ steps maps

    s ← A·s + B,      A = (p^τ + (M − 1)·q^(2τ))/M,      B = η²σ²·(1 − p^τ)/(M·(1 − p)).

Its mean is q^τ times what it was; the variance is s minus the square of the mean. For one round from a fixed x₀ and b
= 0,

    Var = (η²σ²/M)·(1 − q^(2τ))/(1 − q²),

and after k rounds of τ steps the same with kτ for τ: **with b = 0 only the number of steps counts, not how often
workers average**. With b > 0 it does: A falls as rounds become frequent. As k → ∞, s → B/(1 − A).
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.transport.local import LocalTransport, run_workers


class Quadratic(NamedTuple):
    """½·a·x², SGD on it, and its noise; all by the names of the derivation.

    The closed form needs q² + η²b² ≠ 1; below 1 the second moment stays finite.
    """

    a: float = 1.0
    eta: float = 0.1
    sigma: float = 1.0
    b: float = 0.0
    start: float = 1.0
    workers: int = 4


def variance(problem: Quadratic, period: int, rounds: int) -> float:
    """The variance of the average of the workers after so many rounds: the closed form."""
    a, eta, sigma, b, start, workers = problem
    q = 1 - eta * a
    p = q * q + eta * eta * b * b
    slope = (p**period + (workers - 1) * q ** (2 * period)) / workers
    offset = (eta * sigma) ** 2 * (1 - p**period) / (workers * (1 - p))
    second = start * start
    for _ in range(rounds):
        second = slope * second + offset
    return second - (start * q ** (period * rounds)) ** 2


def sampled(problem: Quadratic, period: int, rounds: int, samples: int, seed: int) -> tuple[float, float]:
    """The variance among so many independent copies of the experiment, and its standard error.

    The copies are the elements of one parameter, which the real optimizer averages element by element.
    """
    averages = run_workers(
        problem.workers, partial(_train, problem=problem, period=period, rounds=rounds, samples=samples, seed=seed)
    )[0]
    squares = (averages - averages.mean()) ** 2
    found = squares.sum() / (samples - 1)
    # The variance of a sample variance is (μ₄ − Var²)/n, up to terms of order 1/n².
    return found.item(), math.sqrt(((squares**2).mean() - found**2).item() / samples)


def _train(
    transport: LocalTransport, problem: Quadratic, period: int, rounds: int, samples: int, seed: int
) -> Tensor:  # fmt: skip
    a, eta, sigma, b, start, _ = problem
    x = nn.Parameter(torch.full((samples,), start, dtype=torch.float64))
    optimizer = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD([x], lr=eta), process_group=transport, averaging="uniform", period=period, pull=1.0,
        proximity=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1000 * seed + transport.rank)
    for _ in range(period * rounds):
        at = x.detach()
        drawn = torch.randn(samples, generator=generator, dtype=torch.float64)
        x.grad = a * at + (sigma**2 + (b * at) ** 2).sqrt() * drawn
        optimizer.step()
    return x.detach()
