"""DiLoCo, SlowMo and BMUF: the plain mean, and a step of SGD with momentum by which the centre follows it.

All three are one recipe with different numbers. The centre c starts at the parameters of the first step. A round forms
the mean of the workers, takes d = c − mean for a gradient, and sets every worker to the centre that SGD has stepped:

    v ← η·v + d,   c ← c − lr·v (plain)   or   c ← c − lr·(d + η·v) (Nesterov),   x[m] ← c

The `pull` of the user is for rounds within hosts alone: here a worker goes all the way. `proximity` is not part of
these papers: give 0.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from grawa_hvd.averaging.policy import Mix, Recipe
from grawa_hvd.averaging.uniform import Uniform


def _outer_sgd(mix: Mix, lr: float, momentum: float, nesterov: bool) -> Recipe:
    """The recipe above."""
    from grawa_hvd.rounds.pull import Constant  # noqa: PLC0415  (it needs the kernels, which policies do without)

    # Without momentum Nesterov's step is the plain one, and torch refuses its name.
    outer = functools.partial(torch.optim.SGD, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    return Recipe(mix, outer, Constant(1.0), "first step")


def _check(lr: float, momentum: float) -> None:
    if not lr > 0:
        raise ValueError(f"lr must be above 0, but is {lr!r}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and below 1, but is {momentum!r}")


@dataclass(frozen=True)
class DiLoCo(Uniform):
    """Distributed low-communication training: SGD with Nesterov momentum steps the centre (Douillard et al., 2023).

    The paper's inner optimizer is AdamW, its period 500 steps.

    Args:
        lr: of the centre, above 0.
        momentum: of the centre, at least 0 and below 1.

    Raises:
        ValueError: if a value is outside its range.
    """

    lr: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    def recipe(self) -> Recipe:
        """The plain mean, and SGD with Nesterov momentum."""
        return _outer_sgd(self, self.lr, self.momentum, nesterov=True)


@dataclass(frozen=True)
class SlowMo(Uniform):
    """Slow momentum (Wang, Tantia, Ballas & Rabbat, ICLR 2020, algorithm 1), for an inner step size that is constant.

    With the inner step size γ the paper has u ← β·u + (x₀ − mean)/γ and x ← x₀ − α·γ·u. For a constant γ that is
    plain SGD on x₀ − mean, with v = γ·u: lr = α, momentum = β. Here γ is never asked for. So where a schedule changes
    it, v is kept as it is, and the paper would first multiply it by γ_new/γ_old. Of the paper's choices for the inner
    optimizer's buffers, `optimizer_state` is "keep" (the default), "average" or "reset".

    Args:
        lr: α, the slow learning rate, above 0.
        momentum: β, the slow momentum, at least 0 and below 1.

    Raises:
        ValueError: if a value is outside its range.
    """

    lr: float = 1.0
    momentum: float = 0.5

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    def recipe(self) -> Recipe:
        """The plain mean, and SGD with momentum."""
        return _outer_sgd(self, self.lr, self.momentum, nesterov=False)


@dataclass(frozen=True)
class BMUF(Uniform):
    """Blockwise model-update filtering (Chen & Huo, ICASSP 2016).

    With the block learning rate ζ and the block momentum η the paper has Δ ← η·Δ + ζ·(mean − c) and W ← W + Δ. Workers
    go on from c = W + η·Δ (Nesterov block momentum), or from c = W (classical block momentum). For constant ζ and η
    that is SGD on c − mean with lr = ζ and momentum = η. `optimizer.center` is c, also after the last round; the
    paper's final model is W.

    Args:
        lr: ζ, above 0.
        momentum: η, at least 0 and below 1. The authors advise 1 − 1/M for M workers; the default is that for two.
        nesterov: whether workers go on from W + η·Δ.

    Raises:
        ValueError: if a value is outside its range.
    """

    lr: float = 1.0
    momentum: float = 0.5
    nesterov: bool = True

    def __post_init__(self) -> None:
        _check(self.lr, self.momentum)

    def recipe(self) -> Recipe:
        """The plain mean, and SGD with momentum."""
        return _outer_sgd(self, self.lr, self.momentum, self.nesterov)
