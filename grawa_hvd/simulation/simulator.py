"""Training of M workers in one process, with the averaging of real ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from grawa_hvd.averaging.policy import Mix
from grawa_hvd.checked import check_integer
from grawa_hvd.rounds.outer import OuterFactory
from grawa_hvd.rounds.schedule import Period
from grawa_hvd.scores import FreshScores, LocalScores
from grawa_hvd.settings import Settings
from grawa_hvd.simulation.data import SEEDS, Pair, Shards, checked_pairs
from grawa_hvd.simulation.elementwise import OptimizerFactory
from grawa_hvd.simulation.gradients import Gradients, Loss
from grawa_hvd.simulation.population import Population
from grawa_hvd.simulation.result import Simulation
from grawa_hvd.simulation.run import Evaluate, Evaluation, Run, seeded
from grawa_hvd.simulation.shared import check_recipe

MOMENTUM_SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def simulate(
    model: nn.Module,
    loss: Loss,
    shards: Sequence[Pair] | Pair,
    *,
    workers: int | None = None,
    optimizer: OptimizerFactory = MOMENTUM_SGD,
    steps: int = 320,
    batch_size: int = 16,
    averaging: str | Mix = "uniform",
    period: Period = 32,
    pull: float = 0.5,
    proximity: float = 0.01,
    warmup_steps: int = 0,
    outer_momentum: float = 0.0,
    outer_optimizer: OuterFactory | None = None,
    scores: str | LocalScores | Pair = "local",
    layers: str = "parameter",
    seed: int = 0,
    accuracy: Loss | None = None,
    evaluate: Evaluate | None = None,
    every: int | None = None,
    progress: bool = True,
    chunk_size: int | None = None,
) -> Simulation:
    """Train M workers that average their models, in one process and without a launcher.

    The workers' parameters are stacked, and their gradients come from one pass of torch.func. What happens in a round
    is what happens among real ranks, by the same policies, outer optimizers and pulls: given the same batches, workers
    and centre are those of `DistributedGrawaOptimizer` to rounding. `grawa_hvd.simulation.batches` gives the batches.

    Args:
        model: what every worker starts from; it is left as it is. Its modules must run under `torch.func.vmap`, in the
            mode (`train()`, `eval()`) that it is in.
        loss: of a batch's outputs and targets, one number: a mean over the batch.
        shards: the data of each worker, M pairs (inputs [n, ...], targets [n, ...]). Or one such pair, which is dealt
            out at random in equal parts.
        workers: M, where `shards` is one pair; from 1 to its samples.
        optimizer: a function of parameters that returns the torch optimizer of the local steps. It steps every element
            by itself, as SGD, Adam and RMSprop do, since it is given the stacked parameters.
        steps: local steps, at least 1; batch_size: samples that each worker takes in one.
        averaging, period, pull, proximity, warmup_steps, outer_momentum, outer_optimizer, layers: see
            `DistributedGrawaOptimizer`.
        scores: "local" or `LocalScores`: norms of the gradients of local steps. "fresh": before a round, of one more
            batch of each worker. A pair (inputs, targets): the same, of this batch for all workers.
        seed: of batches, of how data are dealt out, and of dropout; from 0 to 65535.
        accuracy: of a batch's outputs and targets, a number from 0 to 1: reported to the policy, as are loss and
            samples.
        evaluate: given a copy of the model that is the mean of the workers, in `eval()` mode, returns what is kept.
        every: steps between two evaluations; None for one at the end.
        progress: whether a progress bar is shown, if tqdm is installed.
        chunk_size: how many workers pass forward and backward together, to save memory; None for all.

    Raises:
        ValueError: naming the argument that is out of range, or what the model or the optimizer cannot do.
        AllWorkersDivergedError: if no worker has finite parameters and scores.

    Source: Dimlioglu & Choromanska, AISTATS 2024, algorithms 1 and 2.
    """
    check_integer("steps", steps, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0, SEEDS - 1)
    for name, value in (("every", every), ("chunk_size", chunk_size)):
        if value is not None:
            check_integer(name, value, 1)
    for name, given in (("loss", loss), ("accuracy", accuracy), ("evaluate", evaluate)):
        if not callable(given) and not (given is None and name != "loss"):
            raise ValueError(f"{name} must be callable, but is {given!r}")
    pairs = checked_pairs(shards, workers, seed)
    settings = Settings(
        averaging, period, pull, proximity, outer_momentum, outer_optimizer, _source(scores), layers,
        warmup_steps=warmup_steps,
    )  # fmt: skip
    check_recipe(settings.recipe)
    population = Population(model, len(pairs), optimizer)
    batches = Shards(pairs, batch_size, seed, population.device)
    held_out = None if isinstance(scores, (str, LocalScores)) else scores
    run = Run(population, Gradients(model, loss, accuracy, chunk_size), batches, settings, held_out)
    with seeded(seed, population.device):
        return run(steps, Evaluation(model, evaluate, every or steps), progress)


def _source(scores: Any) -> LocalScores | FreshScores:
    """What `scores=` stands for among real ranks; where a batch is needed, the run gives it."""
    if isinstance(scores, LocalScores):
        return scores
    if isinstance(scores, str) and scores == "local":
        return LocalScores()
    if (isinstance(scores, str) and scores == "fresh") or _is_batch(scores):
        return FreshScores(_needs_a_batch)
    raise ValueError(
        f'scores must be "local", LocalScores(…), "fresh", or a batch as a pair of tensors, but is {scores!r}'
    )


def _is_batch(scores: Any) -> bool:
    is_pair = isinstance(scores, Sequence) and len(scores) == 2 and all(isinstance(part, Tensor) for part in scores)
    return is_pair and len(scores[0]) == len(scores[1]) > 0


def _needs_a_batch() -> None:
    raise AssertionError("the cohort gives the gradients")
