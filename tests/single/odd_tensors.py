"""Tensors of every kind for hypothesis: those that the kernels take, and those that they must refuse."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from devices import DTYPES, values
from hypothesis import strategies as st
from torch import Tensor

SPECIAL = [math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-30, 6e4]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (0, 3), (2, 3, 4), (2, 3, 2, 5), (1025,), (16385,)]


def _gaps(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], dim=-1)[..., 0]


def _offset(tensor: Tensor) -> Tensor:
    """Not at a multiple of 16 bytes."""
    memory = torch.cat([tensor.new_zeros(3), tensor.reshape(-1)])
    return memory[3:].view(tensor.shape)


def _inference(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor.clone()


# Same elements, in other memory.
TAKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda tensor: tensor,
    "gaps": _gaps,
    "offset": _offset,
    "transposed": lambda tensor: tensor.movedim(0, -1).contiguous().movedim(-1, 0) if tensor.dim() else tensor,
    "inference": _inference,
    "requires_grad": lambda tensor: tensor.clone().requires_grad_(),
}


def _freed(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().resize_(0)
    return tensor


def _sparse_csr(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # beta state
        return tensor.reshape(1, -1).to_sparse_csr()


# Whether they are taken, or how they are refused, is up to the operator.
ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "integer": lambda tensor: tensor.nan_to_num().clamp(-9, 9).int(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bool": lambda tensor: tensor > 0,
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse_csr": _sparse_csr,
    "quantized": lambda tensor: torch.quantize_per_tensor(tensor.float().nan_to_num(), 0.1, 0, torch.qint8),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor.reshape(-1), tensor.reshape(-1)]),
    "mkldnn": lambda tensor: tensor.float().to_mkldnn(),
    "expanded": lambda tensor: tensor.expand(3, *tensor.shape),
    "huge": lambda tensor: tensor.new_ones(1).expand(2**40),
    "one more": lambda tensor: torch.cat([tensor.reshape(-1), tensor.new_ones(1)]),
    "no dimension": lambda tensor: tensor.new_ones(()),
    "two dimensions": lambda tensor: tensor.unsqueeze(0),
    "negated": lambda tensor: tensor._neg_view(),
    "freed": _freed,
    "zeros of autograd": lambda tensor: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype),
}  # fmt: skip


A_SHAPE, A_DTYPE, A_SEED = st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 99)
A_PLACE, A_SPECIAL = st.integers(0, 20), st.sampled_from([None, None, None, *SPECIAL])
A_KIND, AN_ODD_KIND = st.sampled_from(list(TAKEN)), st.sampled_from(list(ODD))


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...] | None = None, dtypes: list[torch.dtype] | None = None) -> Tensor:
    """One that is taken: of any shape and dtype unless given, some of its elements NaN, infinite, zero or tiny."""
    shape = draw(A_SHAPE) if shape is None else shape
    made = values(math.prod(shape), draw(A_DTYPE if dtypes is None else st.sampled_from(dtypes)), seed=draw(A_SEED))
    if made.numel():
        place, value = draw(A_PLACE) % made.numel(), draw(A_SPECIAL)
        made[place] = made[place] if value is None else value
    return TAKEN[draw(A_KIND)](made.view(shape))


def one_of(draw: st.DrawFn, *choices: Any) -> Any:
    """One of them; hypothesis would print what it draws, and torch cannot print a tensor whose memory was freed."""
    return choices[draw(st.integers(0, len(choices) - 1))]


def odd(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    """Another in its place, of a kind that few expect; some kinds cannot be made of all tensors."""
    kind = ODD[draw(AN_ODD_KIND)]
    try:
        return kind(tensor.detach().clone())
    except RuntimeError:
        return ODD["complex"](tensor.detach())
