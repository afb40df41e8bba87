"""The workers themselves: their parameters and buffers, stacked, and the one optimizer that steps them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from grawa_hvd.errors import AllWorkersDivergedError
from grawa_hvd.model.buffers import Buffers
from grawa_hvd.simulation.elementwise import OptimizerFactory, check_elementwise


class Population:
    """M copies of a model.

    Args:
        model: what all of them start from.
        workers: M.
        optimizer: given the stacked parameters, returns the optimizer that steps them.

    Attributes:
        size: M.
        parameters: name → [M, ...], of those that are trained; the others are the model's own.
        buffers: name → [M, ...].
        device: where they are.

    Raises:
        ValueError: if no parameter is trained, or the optimizer does not act on every element by itself.
    """

    def __init__(self, model: nn.Module, workers: int, optimizer: OptimizerFactory) -> None:
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        if not trained:
            raise ValueError(
                f"model must have a parameter that requires a gradient, but {type(model).__name__} has none"
            )
        check_elementwise(optimizer, trained.values())
        self.size, self._model = workers, model
        self.parameters = {name: nn.Parameter(_stacked(parameter, workers)) for name, parameter in trained.items()}
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.buffers = {name: _stacked(buffer, workers) for name, buffer in model.named_buffers()}
        self.device = next(iter(trained.values())).device
        self._factory, self._optimizer = optimizer, optimizer([*self.parameters.values()])
        self._alone: dict[int, tuple[list[nn.Parameter], torch.optim.Optimizer]] = {}

    def views(self, worker: int) -> list[tuple[nn.Parameter, str]]:
        """One worker's parameters and their names: views of the stacks, and so are their gradients."""
        found = []
        for name, stacked in self.parameters.items():
            view = nn.Parameter(stacked.detach()[worker])
            assert stacked.grad is not None
            view.grad = stacked.grad[worker]
            found.append((view, name))
        return found

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """Let the optimizer consume a gradient of every worker, by name, [M, ...]."""
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None
            parameter.grad.copy_(gradients[name])
        before = [parameter.clone() for own, _ in self._alone.values() for parameter in own]
        self._optimizer.step()
        for parameter, value in zip((p for own, _ in self._alone.values() for p in own), before, strict=True):
            parameter.copy_(value)
        for _, optimizer in self._alone.values():
            optimizer.step()

    def reset_state(self, worker: int) -> None:
        """Let the optimizer know nothing of one worker's past.

        Some of what it keeps, as Adam's count of steps, is one for all workers. So this worker has an optimizer of its
        own from now on.
        """
        own = [parameter for parameter, _ in self.views(worker)]
        self._alone[worker] = (own, self._factory(own))

    @torch.no_grad()
    def state_dicts(self) -> dict[str, Tensor]:
        """The workers' models as state_dicts of the model, stacked: name → [M, ...]."""
        return self._state_dict({**self.parameters, **self.buffers}, lambda own: _stacked(own, self.size))

    @torch.no_grad()
    def mean(self) -> dict[str, Tensor]:
        """The plain mean of the workers that have not diverged, as a state_dict of the model.

        Of a running variance the pooled one is meant, within and between the workers. Buffers of whole numbers are
        those of worker 0, and parameters that are not trained the model's own.

        Raises:
            AllWorkersDivergedError: if no worker has finite parameters.
        """
        finite = torch.ones(self.size, dtype=torch.bool, device=self.device)
        for parameter in self.parameters.values():
            finite &= parameter.reshape(self.size, -1).isfinite().all(dim=1)
        if not finite.any():
            raise AllWorkersDivergedError(f"none of the {self.size} workers has finite parameters")
        parameters = {name: parameter[finite].mean(dim=0) for name, parameter in self.parameters.items()}
        counts = {name: buffer[0] for name, buffer in self.buffers.items()}
        return self._state_dict({**counts, **self._mean_buffers(finite), **parameters}, lambda own: own)

    def _mean_buffers(self, finite: Tensor) -> dict[str, Tensor]:
        buffers = Buffers(self._model)
        kept = [self.buffers[name][finite] for name in buffers.names]
        means = [values.mean(dim=0) for values in kept]
        for variance, mean in buffers.variances.items():
            means[variance] = means[variance] + kept[mean].var(dim=0, correction=0)
        return dict(zip(buffers.names, means, strict=True))

    def _state_dict(self, values: Mapping[str, Tensor], of_others: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The model's state_dict with these values, by the first name of each tensor; others as a function says."""
        named = [*self._model.named_parameters(), *self._model.named_buffers()]
        first_name = {id(tensor): name for name, tensor in named}
        found: dict[str, Any] = {}
        for name, own in self._model.state_dict(keep_vars=True).items():
            value = values.get(first_name.get(id(own), name))
            if value is None:
                value = of_others(own) if isinstance(own, Tensor) else own
            found[name] = value.detach().clone() if isinstance(value, Tensor) else value
        return found


def _stacked(tensor: Tensor, workers: int) -> Tensor:
    return tensor.detach().expand(workers, *tensor.shape).clone(memory_format=torch.contiguous_format)
