"""The local steps of one optimizer, prepared once: torch's own spend more time on small models than the work takes."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from grawa_hvd import _C


class SgdHyperparameters(NamedTuple):
    """Of a param group of torch.optim.SGD, by torch's names."""

    lr: float | Tensor
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool


class AdamwHyperparameters(NamedTuple):
    """Of a param group of torch.optim.AdamW, by torch's names; `betas` in two."""

    lr: float | Tensor
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    maximize: bool


class StepTable:
    """Makes the local steps of a torch.optim.SGD or AdamW: update, pull toward the center, gradient norms, in one pass.

    It holds no state: that stays in the optimizer's `state`, in torch's format, whoever replaces it and when. Gradients
    are read from `.grad` at each step. Steps that it cannot make exactly as torch would are left to torch.

    Args:
        algorithm: "sgd" or "adamw".
        params: all parameters of the optimizer, in the order of its param groups.
        groups: for each parameter the index of its param group.

    Raises:
        RuntimeError: if `algorithm` is another, or `groups` has another length or a negative entry.

    Source: torch.optim.SGD, torch.optim.AdamW; the pull is the proximity term of GRAWA (paper, algorithms 1 and 2).
    """

    def __init__(self, algorithm: Literal["sgd", "adamw"], params: Sequence[Tensor], groups: Sequence[int]) -> None:
        self._compiled = _C.StepTable(algorithm, list(params), list(groups))

    def set_targets(
        self,
        norm_rows: Sequence[int],
        centers: Sequence[Tensor | None],
        wire_strides: Sequence[Sequence[int]],
    ) -> None:
        """Say where norms go and centers are; before the first call there are neither.

        Args:
            norm_rows: for each parameter the row of its gradient's norm in `norms`, or -1 for none.
            centers: for each parameter its part of the flat center, one-dimensional and contiguous, or None for no
                pull. The tensors are kept and read at every step: what is written into them counts from then on.
            wire_strides: for each parameter the strides of the order in which its center lies.

        Raises:
            RuntimeError: if a length, a shape or a row is out of range.
        """
        self._compiled.set_targets(list(norm_rows), list(centers), [list(strides) for strides in wire_strides])

    def step(
        self,
        state: dict[Tensor, Any],
        hyperparameters: Sequence[SgdHyperparameters] | Sequence[AdamwHyperparameters],
        pull: float = 0.0,
        norms: Tensor | None = None,
        grad_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> bool:
        """One local step of all parameters; those without a gradient are pulled only, and their norm is -1.

        Args:
            state: the optimizer's `state`.
            hyperparameters: those of each param group.
            pull: the pull toward the center, in [0, 1].
            norms: if given, its rows named in `norm_rows` receive the Frobenius norms of the gradients, unscaled and
                before weight decay; one dimension, float32 or float64.
            grad_scale: as GradScaler leaves it on an optimizer: one number; gradients are divided by it in place.
            found_inf: likewise; above 0 the gradients overflowed: parameters are pulled but not updated, gradients and
                state stay as they are, and all norms are -1.

        Returns:
            False, with nothing changed, if torch must make this step: the state of a parameter is not there yet (torch
            makes it) or has something that this does not know (amsgrad); a gradient is sparse; a tensor's dtype,
            device, shape or order in memory does not match the parameter's, or that of the center; tensors share
            memory; or there is no kernel for the device or the dtype.

        Raises:
            RuntimeError: if an argument differs from that, or another thread is in this call.
        """
        return self._compiled.step(state, hyperparameters, pull, norms, grad_scale, found_inf)
