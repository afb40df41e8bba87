"""QSR: the period grows as the learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from grawa_hvd.checked import check_integer, check_number
from grawa_hvd.rounds.rows import Progress

LONGEST = 2**31  # steps: what a learning rate close to zero would exceed


@dataclass(frozen=True)
class QSR:
    """The quadratic synchronization rule, for `period=`: τ = max(base, ⌊(a/lr)²⌋) (Gu et al., ICLR 2024).

    It is asked when a cycle begins. A learning rate of 0 gives `base`. While training warms up with small learning
    rates the rule has no meaning: the paper takes the rate at the end of the warm-up there, and `lr` should return it.
    No period of a function ends with training: `optimizer.round_now()` makes the last round.

    Args:
        base: τ at least, an integer of at least 1.
        a: the growth coefficient, above 0: τ exceeds `base` where the learning rate is below a/√(base + 1).
        lr: from local steps made so far to the learning rate of the next, as `schedule`, or
            `lambda step: optimizer.param_groups[0]["lr"]`, which is called once the optimizer exists.

    Raises:
        ValueError: if a value is out of range, also one that `lr` returns.
    """

    base: int
    a: float
    lr: Callable[[int], float]

    def __post_init__(self) -> None:
        check_integer("base", self.base, 1)
        check_number("a", self.a, lambda x: x > 0, "above 0")
        if not callable(self.lr):
            raise ValueError(f"lr must be a function of the step that returns the learning rate, but is {self.lr!r}")

    def __call__(self, progress: Progress) -> int:
        """τ of the cycle that begins here."""
        lr = float(self.lr(progress.steps))
        if not 0 <= lr < math.inf:
            raise ValueError(f"lr must return a learning rate of at least 0, but returned {lr!r}")
        ratio = self.a / lr if lr else 0.0
        # Of decimal numbers, as .3/.1, the quotient may come out a rounding below an integer.
        square = min(ratio, math.sqrt(LONGEST)) ** 2 * (1 + 1e-12)
        return max(self.base, min(math.floor(square), LONGEST))
