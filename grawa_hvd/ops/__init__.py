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
    "blend_",
    "layer_norms",
    "pack",
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
        return torch.empty(0, device="cpu")
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
