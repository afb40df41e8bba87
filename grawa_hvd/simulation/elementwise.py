"""Whether an optimizer does the same to the stacked parameters of all workers as to those of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

STEPS, LARGEST = 3, 4


def check_elementwise(factory: Any, parameters: Iterable[Tensor]) -> None:
    """Let two workers make some steps, once each by itself and once stacked, and compare.

    A norm over a tensor (Adafactor, LAMB), a product of matrices (Muon), or groups that are told apart by the number of
    dimensions are found so.

    Args:
        factory: given parameters, returns a torch optimizer.
        parameters: of the model; small ones of as many dimensions stand for them.

    Raises:
        ValueError: if the optimizer is not one that steps every element by itself.
    """
    if not callable(factory):
        raise ValueError(
            f"optimizer must be a function of parameters that returns a torch optimizer, but is {factory!r}"
        )
    shapes = [[2, *(min(size, LARGEST) for size in parameter.shape)] for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes] for _ in range(1 + STEPS)
    )
    stacked, name = _stepped(factory, start, gradients)
    for worker in range(2):
        own, _ = _stepped(factory, _of(worker, start), [_of(worker, gradient) for gradient in gradients])
        # The same operations in another order of memory: some roundings in float64.
        if not all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(_of(worker, stacked), own, strict=True)):
            raise ValueError(
                f"optimizer must step every element by itself, and tell parameters apart by their place and not by "
                f"their shape, for those of all workers are stacked: {name}, as it was given, does not"
            )


def _of(worker: int, stacked: Sequence[Tensor]) -> list[Tensor]:
    return [part[worker] for part in stacked]


def _stepped(
    factory: OptimizerFactory, start: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]]
) -> tuple[list[Tensor], str]:
    """Parameters after a step on each of the gradients, and the optimizer's name."""
    parameters = [nn.Parameter(value.clone()) for value in start]
    name = "the function"
    try:
        optimizer = factory(parameters)
        name = type(optimizer).__name__
        for gradient in gradients:
            for parameter, value in zip(parameters, gradient, strict=True):
                parameter.grad = value.clone()
            optimizer.step()
    except Exception as error:
        raise ValueError(
            "optimizer must be a function of parameters that returns a torch optimizer which steps every element by "
            f"itself, but {name} raised {error!r}"
        ) from error
    return [parameter.detach() for parameter in parameters], name
