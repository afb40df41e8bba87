"""Many runs at once: groups of workers, each with a seed, a learning rate and a policy of its own, in one stack.

A step of 4 small workers is all overhead, and one of 80 costs twice as much. `grawa_hvd.simulate` trains one group with
the code of real ranks; here policies, outer optimizers and pulls are the same objects, and the steps between them are
written out again for a stack of groups. Tests hold the two to each other in float64. Gradient averaging at every step
(DP+SGD) and SAM with it (DP+SAM) are here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional

from experiments.stacked_rounds import Rounds
from grawa_hvd.averaging import Mix, Uniform
from grawa_hvd.settings import Settings
from grawa_hvd.simulation.data import SEEDS, Pair, split

Stack = dict[str, Tensor]
MOMENTUM = 0.9
DROPS = (0.5, 0.75)


@dataclass(frozen=True)
class Job:
    """One group of workers.

    Attributes:
        model: what they start from; one architecture for all groups.
        data: inputs and labels, dealt out as `simulate` does.
        seed: of who has what, and of the batches.
        lr: at first.
        averaging, pull, proximity, outer_momentum, outer_optimizer: as of `simulate`.
    """

    model: nn.Module
    data: Pair
    seed: int
    lr: float
    averaging: Mix = field(default_factory=Uniform)
    pull: float = 0.5
    proximity: float = 0.01
    outer_momentum: float = 0.0
    outer_optimizer: Any = None

    def settings(self, period: int) -> Settings:
        """The same, checked."""
        return Settings(
            self.averaging, period, self.pull, self.proximity, self.outer_momentum, self.outer_optimizer
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What all groups have in common.

    Attributes:
        workers: of a group; batch_size: of a worker; steps: of a run.
        period: steps between rounds; None: gradients are averaged at every step instead.
        scores: where norms are taken: "local" or "fresh", as of `simulate`.
        ascent: ρ of SAM, or 0 for plain gradients. Each worker ascends along its own gradient (paper, appendix F).
        drops: after these parts of the steps the learning rate is a tenth of what it was.
    """

    workers: int
    batch_size: int
    steps: int
    period: int | None
    scores: str = "local"
    ascent: float = 0.0
    drops: tuple[float, ...] = DROPS


class Batches:
    """The batches of all workers, those of `grawa_hvd.simulation.batches`, all drawn at once.

    Args:
        jobs, plan: see `Groups`.
    """

    def __init__(self, jobs: Sequence[Job], plan: Plan) -> None:
        draws = plan.steps + (plan.steps // plan.period if plan.period else 0)  # fresh norms take one a round
        shards = [pair for job in jobs for pair in split(*job.data, plan.workers, job.seed)]
        self._inputs, self._labels = (torch.cat(parts) for parts in zip(*shards, strict=True))
        rows, begin = [], 0
        for number, (inputs, _) in enumerate(shards):
            group, worker = divmod(number, plan.workers)
            generator = torch.Generator().manual_seed(SEEDS * jobs[group].seed + worker)
            times = -(-draws * plan.batch_size // len(inputs))
            drawn = torch.cat([torch.randperm(len(inputs), generator=generator) for _ in range(times)])
            rows.append(begin + drawn[: draws * plan.batch_size].view(draws, plan.batch_size))
            begin += len(inputs)
        self._rows = iter(torch.stack(rows, dim=1))

    def draw(self) -> Pair:
        """The next batch of every worker: [groups · M, batch size, ...]."""
        rows = next(self._rows)
        return self._inputs[rows], self._labels[rows]


class Groups:
    """Groups that train.

    Args:
        jobs: one for each group.
        plan: how.

    Attributes:
        workers: name → [groups · M, ...].
        before_round: the same just before the last round.
    """

    def __init__(self, jobs: Sequence[Job], plan: Plan) -> None:
        self.plan, self._model = plan, jobs[0].model
        starts = [dict(job.model.named_parameters()) for job in jobs]
        self.workers: Stack = {
            name: torch.stack([start[name].detach() for start in starts]).repeat_interleave(plan.workers, dim=0)
            for name in starts[0]
        }
        self.before_round = self.workers
        self._momentum = {name: torch.zeros_like(value) for name, value in self.workers.items()}
        self._rates = torch.tensor([job.lr for job in jobs], dtype=torch.float64).repeat_interleave(plan.workers)
        self._batches = Batches(jobs, plan)
        settings = [job.settings(plan.period) for job in jobs] if plan.period else []
        self._rounds = Rounds(settings, self.workers, plan.workers, plan.scores) if plan.period else None
        self._gradients: Any = vmap(_ascended(self._loss, plan.ascent) if plan.ascent else grad_and_value(self._loss))

    @torch.no_grad()
    def train(self, every: int, look: Callable[[Groups], Any]) -> list[tuple[int, Any]]:
        """All steps.

        Args:
            every: steps between two looks; there is one at the end.
            look: returns what is kept.

        Returns:
            (step, what was returned) pairs.
        """
        seen = []
        for step in range(1, self.plan.steps + 1):
            self._step(step)
            if step % every == 0 or step == self.plan.steps:
                seen.append((step, look(self)))
        return seen

    def means(self) -> Stack:
        """The plain mean of each group, name → [groups, ...]."""
        return {name: self._by_group(value).mean(dim=1) for name, value in self.workers.items()}

    def outputs(self, stack: Stack, inputs: Tensor) -> Tensor:
        """What each model of a stack [K, ...] says of inputs of its own, [K, n, ...]."""
        said: Tensor = vmap(lambda own, x: functional_call(self._model, own, (x,)))(stack, inputs)
        return said

    def _step(self, step: int) -> None:
        """A local step of all workers, and a round if one is due."""
        plan = self.plan
        gradients, losses = self._pass()
        if plan.period is None:
            gradients = {name: self._group_mean(value) for name, value in gradients.items()}
        self._descend(gradients, step)
        if self._rounds is None or plan.period is None:
            return
        self._rounds.after_step(gradients, losses, plan.batch_size, plan.period)
        if step % plan.period == 0:
            if step == plan.steps - plan.steps % plan.period:
                self.before_round = {name: value.clone() for name, value in self.workers.items()}
            self._rounds.round(self._pass if self._rounds.wants_fresh else None)

    def _descend(self, gradients: Stack, step: int) -> None:
        """SGD with Nesterov momentum as torch's, each group at its own learning rate."""
        drops = sum(step > part * self.plan.steps for part in self.plan.drops)
        rates = self._rates * 0.1**drops
        for name, value in self.workers.items():
            momentum, gradient = self._momentum[name], gradients[name]
            momentum.mul_(MOMENTUM).add_(gradient)
            along = gradient + MOMENTUM * momentum
            value.sub_(along * rates.to(value).view(-1, *[1] * (value.dim() - 1)))

    def _pass(self) -> tuple[Stack, Tensor]:
        """Gradients and losses of the next batch of every worker."""
        gradients, losses = self._gradients(self.workers, *self._batches.draw())
        return gradients, losses

    def _loss(self, parameters: Stack, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(self._model, parameters, (inputs,)), labels)

    def _by_group(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.plan.workers, *values.shape[1:])

    def _group_mean(self, values: Tensor) -> Tensor:
        """Of each worker's group, in the place of each worker."""
        return torch.mean(self._by_group(values), dim=1).repeat_interleave(self.plan.workers, dim=0)


def _ascended(loss: Callable[..., Tensor], rho: float) -> Callable[..., tuple[Stack, Tensor]]:
    """The gradient at parameters + ρ·g/‖g‖, g the gradient at the parameters, and the loss there."""
    gradient = grad_and_value(loss)

    def found(parameters: Stack, inputs: Tensor, labels: Tensor) -> tuple[Stack, Tensor]:
        first, _ = gradient(parameters, inputs, labels)
        norm = torch.stack([part.square().sum() for part in first.values()]).sum().sqrt()
        moved = {name: value + rho * first[name] / (norm + 1e-12) for name, value in parameters.items()}
        above: tuple[Stack, Tensor] = gradient(moved, inputs, labels)
        return above

    return found
