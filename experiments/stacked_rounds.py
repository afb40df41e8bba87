"""The rounds of a stack of groups: each group's policy, outer optimizer and pull are the package's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Column, Observed
from grawa_hvd.rounds.pull import Constant
from grawa_hvd.scores import FreshScores, LocalScores
from grawa_hvd.settings import Settings

Stack = dict[str, Tensor]


class Rounds:
    """What happens between the workers of each group.

    Args:
        settings: of each group.
        workers: their parameters, name → [groups · M, ...]; changed in place. A tensor is a layer.
        size: M.
        scores: "local" or "fresh".

    Attributes:
        center: name → [groups, ...].
        wants_fresh: whether a round goes by the gradients of one more batch.
    """

    def __init__(self, settings: Sequence[Settings], workers: Stack, size: int, scores: str) -> None:
        self._settings, self._workers, self._size = settings, workers, size
        layers, rows = len(workers), len(settings) * size
        self._states = [own.recipe.mix.init(size, layers) for own in settings]
        norms = any(Column.NORMS in own.recipe.mix.needs for own in settings)
        self.wants_fresh, self._observes = norms and scores == "fresh", norms and scores == "local"
        self._decay = FreshScores(_unused).decay if scores == "fresh" else LocalScores().decay
        self._sums, self._counts = torch.zeros(rows, layers, dtype=torch.float64), 0.0
        self._losses, self._reports, self._samples = torch.zeros(rows, dtype=torch.float64), 0, 0
        self.center = {name: value[::size].clone() for name, value in workers.items()}
        self._known = torch.tensor([own.starts_at_first_step for own in settings])
        self._outers = [self._outer(number, own) for number, own in enumerate(settings)]

    def _outer(self, number: int, own: Settings) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]] | None:
        """The optimizer of one group's centre, and that centre as its parameters."""
        if own.outer is None:
            return None
        parts = [torch.nn.Parameter(value[number]) for value in self.center.values()]
        return own.outer(parts), parts

    def after_step(self, gradients: Stack, losses: Tensor, batch_size: int, period: int) -> None:
        """Take in a local step, and pull the workers a little to the last centre."""
        self._report(losses)
        self._samples += batch_size
        if self._observes:
            self._estimate(gradients)
        parts = torch.tensor([own.proximity / period for own in self._settings]) * self._known
        if parts.any():
            self._pull(parts.repeat_interleave(self._size))

    def round(self, fresh: Callable[[], tuple[Stack, Tensor]] | None) -> None:
        """Average, move the centres, pull the workers."""
        if fresh is not None:
            gradients, losses = fresh()
            self._estimate(gradients)
            self._report(losses)
        average = self._average(self._weights())
        self._pull(self._strengths("old"))
        self._move(average)
        self._pull(self._strengths("new"))
        self._losses.zero_()
        self._reports = self._samples = 0
        if self._observes:
            self._sums.zero_()
            self._counts = 0.0

    def _report(self, losses: Tensor) -> None:
        self._losses += losses
        self._reports += 1

    def _estimate(self, gradients: Stack) -> None:
        """e ← ρe + (1−ρ)n, and 1−ρ^k likewise."""
        norms = torch.stack([value.flatten(1).norm(dim=1) for value in gradients.values()], dim=1)
        self._sums.mul_(self._decay).add_(norms, alpha=1 - self._decay)
        self._counts = self._decay * self._counts + 1 - self._decay

    def _weights(self) -> Tensor:
        """β, [groups, M, L]; of a group with a worker that has diverged 1/M: it is lost, and its policy not asked."""
        layers, is_finite = len(self._workers), self._finite()
        away = self._apart().double() * self._known.repeat_interleave(self._size)[:, None]
        norms = self._sums / self._counts if self._counts else self._sums
        nothing = torch.full((self._size,), torch.nan, dtype=torch.float64)
        found = torch.full((len(self._settings), self._size, layers), 1 / self._size, dtype=torch.float64)
        for number, own in enumerate(self._settings):
            rows = slice(number * self._size, (number + 1) * self._size)
            if not is_finite[rows].all():
                continue
            needs = own.recipe.mix.needs
            observed = Observed(
                is_finite[rows], norms[rows] if Column.NORMS in needs else torch.zeros_like(norms[rows]),
                away[rows] if Column.DISPLACEMENTS in needs else torch.zeros_like(away[rows]),
                self._losses[rows] / self._reports, nothing, torch.full_like(nothing, float(self._samples)),
            )  # fmt: skip
            mixing, self._states[number] = own.recipe.mix(observed, self._states[number])
            found[number] = mixing.weights
        return found

    def _average(self, weights: Tensor) -> Stack:
        """Σ_m β[m]·x[m] of each group, name → [groups, ...]."""
        return {
            name: (self._wide(own, value.dim()).to(value) * value.unflatten(0, (-1, self._size))).sum(dim=1)
            for own, (name, value) in zip(weights.unbind(dim=2), self._workers.items(), strict=True)
        }

    def _move(self, average: Stack) -> None:
        """Each group's centre becomes the average, or steps toward it by an optimizer of its own."""
        for number, outer in enumerate(self._outers):
            if outer is None or not self._known[number]:
                for name, value in average.items():
                    self.center[name][number] = value[number]
                continue
            optimizer, parts = outer
            for part, value in zip(parts, average.values(), strict=True):
                part.grad = part.detach() - value[number]
            optimizer.step()
        self._known[:] = True

    def _strengths(self, anchor: str) -> Tensor:
        """How far each worker is pulled to the "old" or to the "new" centre, [groups · M]."""
        distances = self._apart().double().square().sum(dim=1).sqrt().unflatten(0, (-1, self._size))
        found = torch.zeros_like(distances)
        for number, own in enumerate(self._settings):
            pull = own.recipe.pull or Constant(own.pull)
            if pull.anchor == anchor:
                strength = pull.strength(self._size)
                found[number] = strength(distances[number]) if callable(strength) else strength
        return found.flatten()

    def _pull(self, parts: Tensor) -> None:
        """x ← x + part·(c − x), a part for each worker."""
        if not parts.any():
            return
        for name, value in self._workers.items():
            away = self.center[name].repeat_interleave(self._size, dim=0) - value
            value.add_(away * self._wide(parts, value.dim()).to(value))

    def _apart(self) -> Tensor:
        """‖x − c‖ of each layer, [groups · M, L]."""
        apart = [
            value - self.center[name].repeat_interleave(self._size, dim=0) for name, value in self._workers.items()
        ]
        return torch.stack([value.flatten(1).norm(dim=1) for value in apart], dim=1)

    def _finite(self) -> Tensor:
        """Which workers have not diverged, bool, [groups · M]."""
        return torch.stack([value.flatten(1).isfinite().all(dim=1) for value in self._workers.values()]).all(dim=0)

    @staticmethod
    def _wide(values: Tensor, dim: int) -> Tensor:
        """[..., 1, 1]: as many further dimensions as a stack of parameters has."""
        return values.reshape(*values.shape, *[1] * (dim - 1))


def _unused() -> Any:
    raise AssertionError("a stack takes its fresh gradients itself")
