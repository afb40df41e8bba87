"""The gradients of all workers at once: one function of a worker's parameters, mapped over the stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm

Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Found:
    """What one forward and backward pass of M workers finds.

    Attributes:
        gradients: parameter name → [M, ...].
        buffers: buffer name → [M, ...], as the pass has left them.
        losses: [M].
        accuracies: [M]; None if nobody measures them.
        samples: of each worker's batch.
    """

    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]
    losses: Tensor
    accuracies: Tensor | None
    samples: int


class Gradients:
    """Forward and backward of M workers in one pass.

    Args:
        model: its modules are used; its own parameters and buffers stay as they are.
        loss: of outputs and targets, one number.
        accuracy: likewise, or None.
        chunk_size: how many workers pass together; None for all.

    Raises:
        ValueError: if the model has a module that cannot be mapped over workers.
    """

    def __init__(self, model: nn.Module, loss: Loss, accuracy: Loss | None, chunk_size: int | None) -> None:
        _refuse_cumulative_batch_norm(model)
        self._model, self._loss, self._accuracy = model, loss, accuracy
        self._of_all = vmap(grad(self._of_one, has_aux=True), randomness="different", chunk_size=chunk_size)

    def __call__(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> Found:
        """One pass.

        Args:
            parameters, buffers: by name, stacked, [M, ...].
            inputs, targets: a batch for each worker, [M, batch size, ...].

        Raises:
            ValueError: if model or loss do what cannot be mapped over workers.
        """
        try:
            gradients, (measured, after) = self._of_all(parameters, buffers, inputs, targets)
        except RuntimeError as error:
            raise ValueError(
                f"model and loss must run under torch.func.vmap, but {type(self._model).__name__} raised: {error}"
            ) from error
        return Found(gradients, after, measured[0], measured[1] if len(measured) > 1 else None, inputs.shape[1])

    def _of_one(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, tuple[list[Tensor], dict[str, Tensor]]]:
        """Loss, and beside it what was measured and the buffers after the pass."""
        moved = {name: buffer.clone() for name, buffer in buffers.items()}  # a pass writes into them
        outputs = functional_call(self._model, (parameters, moved), (inputs,))
        loss = self._loss(outputs, targets)
        measured = [loss.detach()]
        if self._accuracy is not None:
            measured.append(torch.as_tensor(self._accuracy(outputs, targets)).detach())
        return loss, (measured, moved)


def _refuse_cumulative_batch_norm(model: nn.Module) -> None:
    """A mean over all batches asks how many there were, and no host can say that of M workers at once."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.momentum is None and module.track_running_stats:
            raise ValueError(
                f"{name} is {type(module).__name__}(momentum=None), whose running statistics cannot be simulated: give "
                "it a momentum, or track_running_stats=False"
            )
