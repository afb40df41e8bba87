"""From gradients to estimates of their norms: where the norms are taken, and the running mean over them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.aside import aside
from grawa_hvd.caller import stacklevel
from grawa_hvd.checked import check_number


@dataclass(frozen=True)
class LocalScores:
    """Norms of the gradients that the local steps consume, restarting after each round (paper, appendix G).

    Args:
        decay: ρ of the running mean, 0 (the last step alone) to below 1.

    Raises:
        ValueError: if `decay` is outside its range.
    """

    decay: float = 0.85

    def __post_init__(self) -> None:
        _check_decay(self.decay)


@dataclass(frozen=True)
class FreshScores:
    """Norms of one gradient taken just before each round, averaged over rounds (paper, sections 5.1 and 5.3).

    Args:
        backward: runs forward and backward on a fresh random batch, as large as a training batch; a loss that it
            returns counts as reported. Gradients, of every tensor that it reaches, and random numbers are afterwards as
            they were before.
        decay: γ of the running mean over rounds, 0 (this round alone) to below 1.

    Raises:
        ValueError: if `decay` is outside its range or `backward` cannot be called.
    """

    backward: Callable[[], Any]
    decay: float = 0.43

    def __post_init__(self) -> None:
        _check_decay(self.decay)
        if not callable(self.backward):
            raise ValueError(f"backward must be callable, but is {self.backward!r}")

    @contextmanager
    def gradients(self, parameters: list[Tensor], number: int) -> Iterator[Any]:
        """Inside the block `.grad` is what `backward`, whose result this yields, made; after it, what it was before.

        Args:
            parameters: of the model; number: see `aside`.
        """
        with aside(parameters, number):
            with torch.enable_grad():
                result = self.backward()
            yield result


@dataclass(frozen=True)
class HeldOutScores(FreshScores):
    """Norms of the gradient on a batch that all workers share, taken just before each round (FedVG, arXiv 2602.21399).

    Norms on a worker's own batches are small where its data is easy, as with few classes, and not only where it is
    good. On a shared batch, held out of training, all are measured alike. Where a run starts, and all ranks have the
    same parameters, `backward` is called twice to see whether it is the same on all: its loss must agree between ranks
    to 1e-3. If the two calls on one rank differ, a warning says so and that rank is not compared.

    Args:
        backward: runs forward and backward on the shared batch, and returns the loss. Dropout and random augmentation
            must be off, or seeded within. BatchNorm in training mode updates its buffers, as in any forward.
        decay: γ of the running mean over rounds, 0 (this round alone) to below 1.

    Raises:
        ValueError: if `decay` is outside its range or `backward` cannot be called; and at the first step, on every
            rank, if ranks have different losses at the same parameters.
    """

    def trial(self, parameters: list[Tensor]) -> float:
        """The loss; NaN, with a warning, if it differs between two calls. Gradients and torch's seeds stay as they are.

        Raises:
            ValueError: if `backward` returns no loss.
        """
        losses = []
        for number in range(2):  # with other random numbers
            with self.gradients(parameters, number) as loss:
                losses.append(_checked_loss(loss))
        if not losses_differ(*losses):
            return losses[0]
        warnings.warn(
            f"the callable of HeldOutScores returned the losses {losses[0]:.6g} and {losses[1]:.6g} for the same "
            "parameters, so whether all ranks pass the same batch was not checked: pass the same samples at each call, "
            "and switch dropout and random augmentation off, or seed them in the callable",
            stacklevel=stacklevel(),
        )
        return math.nan


def losses_differ(one: float, other: float) -> bool:
    """Whether two losses differ by more than rounding: by 2⁻¹⁰ of the larger one.

    That is what 2¹⁴ roundings to float32 come to that all go one way, or two to TensorFloat-32 or float16. A batch of
    other samples differs by some percent.
    """
    return abs(one - other) > 2.0**-10 * max(abs(one), abs(other))


Scores = LocalScores | FreshScores


def scores_source(scores: str | Callable[[], Any] | Scores) -> Scores:
    """What `scores=` names, or is.

    Raises:
        ValueError: if it is neither "local", nor a callable, nor an object from this module.
    """
    if isinstance(scores, (LocalScores, FreshScores)):
        return scores
    if isinstance(scores, str) and scores == "local":
        return LocalScores()
    if callable(scores):
        return FreshScores(scores)
    raise ValueError(f'scores must be "local", a callable, or an object from grawa_hvd.scores, but is {scores!r}')


class NormEstimate:
    """Bias-corrected running means of norms, one a layer: e ← ρe + (1−ρ)n, ê = e / (1−ρ^k).

    1−ρ^k is kept as a running mean of ones, so that a layer that had no gradient at some step is corrected by the
    number of gradients that it had.

    Args:
        layers: how many.
        decay: ρ, from 0 to below 1.
        device: where the norms are.
    """

    def __init__(self, layers: int, decay: float, device: torch.device) -> None:
        self.decay = float(decay)
        self.sums = torch.zeros(layers, dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)

    def update(self, norms: Tensor) -> None:
        """Take in one norm a layer, [layers]; −1 marks a layer without a gradient, which is left as it is."""
        ops.update_estimates_(self.sums, self.counts, norms, self.decay)

    def value(self) -> Tensor:
        """The estimates ê, float64, [layers]; 0 where there was no gradient yet."""
        return torch.where(self.counts > 0, self.sums / self.counts, self.sums)

    def state(self, names: list[str]) -> dict[str, Any]:
        """For a checkpoint: layer name → (sum, count) as tensors of all layers."""
        return {"layers": list(names), "sums": self.sums.clone(), "counts": self.counts.clone()}

    def load(self, names: list[str], state: dict[str, Any]) -> None:
        """Take over what `state` returned, layer by name; layers that it lacks start afresh."""
        row_of = {name: row for row, name in enumerate(state["layers"])}
        known = [(row, row_of[name]) for row, name in enumerate(names) if name in row_of]
        if known:
            to, source = torch.tensor(known, device=self.sums.device).unbind(dim=1)
            self.sums[to] = state["sums"].to(self.sums)[source]
            self.counts[to] = state["counts"].to(self.counts)[source]

    def restart(self, layers: Tensor | None = None) -> None:
        """Forget everything, or what is known of some layers, given by their numbers where the norms are."""
        for values in (self.sums, self.counts):
            if layers is None:
                values.zero_()
            else:
                values.index_fill_(0, layers, 0.0)  # an assignment of a number waits for the device


def _checked_loss(loss: Any) -> float:
    is_number = isinstance(loss, (int, float)) or (isinstance(loss, Tensor) and loss.numel() == 1)
    if not is_number:
        raise ValueError(f"the callable of HeldOutScores must return its loss, one number, but returned {loss!r}")
    return float(loss)


def _check_decay(decay: float) -> None:
    check_number("decay", decay, lambda x: 0 <= x < 1, "at least 0 and below 1")
