"""Gradient averaging at every step, the other way to train in parallel: one model, and the mean of M gradients.

`grawa_hvd.simulate` with uniform weights, period 1 and pull 1 is the same to rounding, which a test shows; as one model
it is ten times as fast. The batches are those of the simulated workers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from grawa_hvd.simulation.data import Pair, Shards, split

Parameters = dict[str, Tensor]


def train(
    model: nn.Module, data: Pair, optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer], *, workers: int,
    batch_size: int, steps: int, seed: int, ascent: float = 0.0,
) -> Iterator[nn.Module]:  # fmt: skip
    """Train a copy of a classifier by the mean of the workers' gradients; it is given after every step.

    Args:
        model: what it starts from.
        data: inputs and labels, dealt out to the workers as `simulate` does.
        optimizer: a function of parameters.
        workers: M; batch_size: of each.
        steps: how many.
        seed: of who has what, and of the batches.
        ascent: ρ of SAM (Foret et al., ICLR 2021), or 0 for plain gradients. Each worker ascends along its own gradient,
            and the gradients found there are averaged: GRAWA paper, appendix F.
    """
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    stepper = optimizer([*parameters.values()])
    shards = Shards(split(*data, workers, seed), batch_size, seed, torch.device("cpu"))

    def loss(own: Parameters, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, own, (inputs,)), labels)

    gradients: Any = vmap(ascended(loss, ascent), in_dims=(None, 0, 0)) if ascent else grad(_of_all(loss))
    for _ in range(steps):
        found = gradients({name: p.detach() for name, p in parameters.items()}, *shards.draw())
        for name, parameter in parameters.items():
            parameter.grad = found[name].mean(dim=0) if ascent else found[name]
        stepper.step()
        yield model


def _of_all(loss: Callable[[Parameters, Tensor, Tensor], Tensor]) -> Callable[[Parameters, Tensor, Tensor], Tensor]:
    """The mean loss of the workers' batches, [M, batch, …], all of a size: its gradient is the mean of theirs."""
    return lambda parameters, inputs, labels: loss(parameters, inputs.flatten(0, 1), labels.flatten())


def ascended(
    loss: Callable[[Parameters, Tensor, Tensor], Tensor], rho: float
) -> Callable[[Parameters, Tensor, Tensor], Parameters]:
    """The gradient at parameters + ρ·g/‖g‖, g the gradient at the parameters."""
    gradient = grad(loss)

    def found(parameters: Parameters, inputs: Tensor, labels: Tensor) -> Parameters:
        first = gradient(parameters, inputs, labels)
        norm = torch.stack([part.square().sum() for part in first.values()]).sum().sqrt()
        moved = {name: value + rho * first[name] / (norm + 1e-12) for name, value in parameters.items()}
        above: Parameters = gradient(moved, inputs, labels)
        return above

    return found
