"""The kernels: norms, packing, blending, local steps and norm estimates over lists of tensors, on their device."""

from collections.abc import Sequence

import torch
from torch import Tensor

import grawa_hvd._C  # noqa: F401  loads the library that defines torch.ops.grawa
from grawa_hvd.ops import fake as fake
from grawa_hvd.ops import fallback as fallback
from grawa_hvd.ops.step_table import AdamwHyperparameters, SgdHyperparameters, StepTable
from grawa_hvd.ops.table import LayerTable

__all__ = [
    "AdamwHyperparameters",
    "LayerTable",
    "SgdHyperparameters",
    "StepTable",
    "adamw_step_",
    "blend_",
    "layer_norms",
    "pack",
    "sgd_step_",
    "update_estimates_",
]


def layer_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Frobenius norm of each tensor, bitwise the same for any number of threads (paper, the norms of section 3).

    Args:
        tensors: float16, bfloat16, float32 or float64 tensors of any shape, strided or sparse COO (duplicate entries
            are added first), on one device.

    Returns:
        Non-negative norms, shape [tensors], float32, or float64 if any tensor is; 0 for an empty tensor. Squares are
        accumulated in float64 where the device has it.

    Raises:
        RuntimeError: if a tensor has another dtype or layout, or is on another device.
    """
    if not tensors:
        # The dispatcher chooses a kernel by the tensors it is given.
        return torch.empty(0)
    norms: Tensor = torch.ops.grawa.layer_norms(tensors)
    return norms


def pack(tensors: Sequence[Tensor], weights: Tensor, out: Tensor, base: Tensor | None = None) -> None:
    """Writes the weighted tensors one after the other: out[offset_l:] = weights[l] * tensors[l].

    A dense tensor of any memory format is read in the order of its memory, any other in row-major order. A weight of 0
    gives exactly 0, even over NaN and Inf; a weight of 1 without a base and without a change of dtype copies bitwise.

    Args:
        tensors: float16, bfloat16, float32 or float64 tensors of any shape, on one device.
        weights: a weight for each tensor, shape [tensors], float32 or float64.
        out: the flat buffer that is written, shape [sum of the tensors' elements], contiguous, any of those dtypes.
        base: if given, subtracted before weighing: weights[l] * (tensors[l] - base[offset_l:]). Shape and dtype of
            `out`; it may be the memory of `out`.

    Raises:
        RuntimeError: if a dtype, a shape or a device differs from that, or `out` shares memory with a tensor.
    """
    torch.ops.grawa.pack(tensors, weights, out, base)


def blend_(tensors: Sequence[Tensor], center: Tensor, pull: Tensor, distances: Tensor | None = None) -> None:
    """Pulls tensors toward a center in place: tensors[l] += pull[l] * (center[offset_l:] - tensors[l]).

    The order of elements is that of `pack`. A pull of 1 gives exactly the center, even over NaN and Inf; a pull of 0
    leaves the tensor as it is.

    Args:
        tensors: float16, bfloat16, float32 or float64 tensors of any shape, on one device. Parameters that require
            gradients are accepted; tensors whose elements share memory (expanded) are not.
        center: the flat center, shape [sum of the tensors' elements], contiguous, any of those dtypes.
        pull: the pull of each tensor, shape [tensors], float32 or float64; in [0, 1] for an interpolation.
        distances: if given, receives the distance of each tensor from the center before the blend, shape [tensors],
            float32 or float64.

    Raises:
        RuntimeError: if a dtype, a shape or a device differs from that, or `center` shares memory with a tensor.
    """
    torch.ops.grawa.blend_(tensors, center, pull, distances)


def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    *,
    center: Tensor | None = None,
    pull: Tensor | None = None,
    norms: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One local step in one pass: the update of torch.optim.SGD in place, then the pull of `blend_`.

    Half types are computed in float32 and rounded once, at the end. What is 0 (momentum, weight decay, pull) is left
    out, not multiplied by; a pull of 1 gives exactly the center.

    Args:
        params: float16, bfloat16, float32 or float64 tensors of any shape, on one device, that share no memory.
        grads: their gradients, same shapes and dtypes. With `grad_scale` they are divided by it in place.
        momentum_buffers: torch's state of the same shapes and dtypes, updated in place: from the second step on, since
            the first one creates it. Empty if `momentum` is 0.
        lr: the learning rate, shape [] or [params], float32 or float64.
        momentum: at least 0.
        dampening: of the momentum; any number.
        weight_decay: at least 0.
        nesterov: needs a momentum above 0 and a dampening of 0.
        maximize: ascend instead of descend.
        center: the flat center in the order of `pack`, shape [elements of all params], contiguous. With `pull` only.
        pull: the pull of each parameter, shape [params], float32 or float64, in [0, 1].
        norms: if given, receives the Frobenius norms of the gradients, unscaled, before weight decay: shape [params],
            float32 or float64, bitwise those of `layer_norms` where a gradient lies in its parameter's order.
        grad_scale: as GradScaler leaves it on an optimizer: one float32 or float64.
        found_inf: likewise; above 0 the gradients overflowed: parameters are pulled but not updated, gradients and
            state stay as they are, and the norms are -1.

    Raises:
        RuntimeError: if an argument differs from that.

    Source: torch.optim.SGD; the pull is the proximity term of GRAWA (paper, algorithms 1 and 2).
    """
    torch.ops.grawa.sgd_step_(
        params, grads, momentum_buffers, lr, momentum, dampening, weight_decay, nesterov, maximize,
        center=center, pull=pull, norms=norms, grad_scale=grad_scale, found_inf=found_inf,
    )  # fmt: skip


def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    maximize: bool = False,
    *,
    center: Tensor | None = None,
    pull: Tensor | None = None,
    norms: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """One local step in one pass: the update of torch.optim.AdamW in place, then the pull, as in `sgd_step_`.

    Args:
        params: as in `sgd_step_`.
        grads: as in `sgd_step_`.
        exp_avgs: torch's running means of the gradients, same shapes and dtypes, updated in place.
        exp_avg_sqs: torch's running means of their squares, likewise.
        steps: torch's counts of steps, one float32 or float64 each; 1 is added.
        lr: the learning rate, shape [] or [params], float32 or float64.
        beta1: decay of `exp_avgs`, in [0, 1).
        beta2: decay of `exp_avg_sqs`, in [0, 1).
        eps: added to the root of the mean square, at least 0.
        weight_decay: decoupled from the gradient, at least 0.
        maximize: ascend instead of descend.
        center: as in `sgd_step_`, and so are the arguments after it.
        pull: see there.
        norms: see there.
        grad_scale: see there.
        found_inf: see there; the counts of steps stay as they are, too.

    Raises:
        RuntimeError: if an argument differs from that.

    Source: torch.optim.AdamW (Loshchilov & Hutter, arXiv 1711.05101).
    """
    torch.ops.grawa.adamw_step_(
        params, grads, exp_avgs, exp_avg_sqs, steps, lr, beta1, beta2, eps, weight_decay, maximize,
        center=center, pull=pull, norms=norms, grad_scale=grad_scale, found_inf=found_inf,
    )  # fmt: skip


def update_estimates_(sums: Tensor, counts: Tensor, norms: Tensor, decay: float) -> None:
    """One step of the running gradient-norm estimates: sums = decay * sums + (1 - decay) * norms (paper, appendix G).

    `counts` runs along with norms of 1, so that sums / counts is the estimate without the bias of the zero start.

    Args:
        sums: running sums, shape [layers], float64, updated in place.
        counts: running weights of the sums, shape [layers], float64, updated in place.
        norms: new norms, shape [layers], float32 or float64. A layer with norm -1 had no gradient and is left alone.
        decay: weight of the past, in [0, 1).

    Raises:
        RuntimeError: if a dtype, a shape or a device differs from that, or `decay` is out of range.
    """
    torch.ops.grawa.update_estimates_(sums, counts, norms, decay)
