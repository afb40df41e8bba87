"""Which weighted mean of models is best: found numerically, over the simplex."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
Criterion = Callable[[nn.Module, Pair], Tensor]
CORNER = 0.94  # the weight of one worker at a start near its corner


def vectors(models: Sequence[nn.Module]) -> Tensor:
    """The models' parameters, [M, N]."""
    return torch.stack([nn.utils.parameters_to_vector(model.parameters()) for model in models]).detach()


def combined(models: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """The model whose parameters are Σ w[m]·x[m]."""
    made = copy.deepcopy(models[0])
    nn.utils.vector_to_parameters(torch.tensor(weights, dtype=torch.float32) @ vectors(models), made.parameters())
    return made


def best_weights(models: Sequence[nn.Module], criterion: Criterion, data: Pair) -> list[float]:
    """The weights, at least 0 and of sum 1, of the combined model whose loss is least.

    SLSQP finds a local minimum from each of M + 1 starts, the uniform weights and near each corner; the best is taken.

    Args:
        models: M of one architecture.
        criterion: of a model and data, the loss.
        data: inputs and targets.
    """
    stacked, made, size = vectors(models), copy.deepcopy(models[0]), len(models)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The loss, and its derivative ∂/∂w[m] = ∇·x[m]."""
        nn.utils.vector_to_parameters(torch.from_numpy(weights).float() @ stacked, made.parameters())
        found = criterion(made, data)
        gradient = nn.utils.parameters_to_vector(torch.autograd.grad(found, [*made.parameters()]))
        return found.item(), (stacked @ gradient).double().numpy()

    others = (1 - CORNER) / max(1, size - 1)
    starts = [np.full(size, 1 / size), *(np.full(size, others) + (CORNER - others) * np.eye(size))]
    sums_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    found = [
        minimize(loss, start, jac=True, method="SLSQP", bounds=[(0, 1)] * size, constraints=sums_to_one)
        for start in starts
    ]  # fmt: skip
    best = np.clip(min(found, key=lambda result: float(result.fun)).x, 0, 1)
    weights: list[float] = (best / best.sum()).tolist()
    return weights
