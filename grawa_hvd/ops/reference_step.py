"""The local steps in plain PyTorch: what their kernels are tested against, and what serves a device without kernels.

Everything stays on the tensors' device: no value is read back to the host.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from grawa_hvd.ops.reference import NO_GRADIENT, blend_, is_dense, layer_norms


@torch.no_grad()
def sgd_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    *,
    center: Tensor | None = None,
    pull: Tensor | None = None,
    norms: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Reference of `grawa_hvd.ops.sgd_step_`, same arguments and result."""
    skipped = _begin(grads, norms, grad_scale, found_inf, params)
    new_params = []
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        old, change = _wide(param), -_wide(grad) if maximize else _wide(grad)
        if weight_decay != 0:
            change = change + weight_decay * old
        if momentum != 0:
            buffer = momentum * _wide(momentum_buffers[index]) + (1 - dampening) * change
            change = change + momentum * buffer if nesterov else buffer
            _put(momentum_buffers[index], buffer, skipped)
        new_params.append(old - _of_layer(lr, index).to(old) * change)
    _end(params, new_params, center, pull, skipped)


@torch.no_grad()
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
    *,
    center: Tensor | None = None,
    pull: Tensor | None = None,
    norms: Tensor | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Reference of `grawa_hvd.ops.adamw_step_`, same arguments and result."""
    skipped = _begin(grads, norms, grad_scale, found_inf, params)
    new_params = []
    for index, (param, grad) in enumerate(zip(params, grads, strict=True)):
        old, change = _wide(param), -_wide(grad) if maximize else _wide(grad)
        step = steps[index] + 1
        rate, count = _of_layer(lr, index).to(old), step.to(old)
        mean = _wide(exp_avgs[index]).lerp(change, 1 - beta1)
        mean_square = beta2 * _wide(exp_avg_sqs[index]) + (1 - beta2) * change * change
        root = mean_square.sqrt() / (1 - beta2**count).sqrt() + eps
        new_params.append((1 - rate * weight_decay) * old - rate / (1 - beta1**count) * mean / root)
        _put(exp_avgs[index], mean, skipped)
        _put(exp_avg_sqs[index], mean_square, skipped)
        _put(steps[index], step, skipped.to(step.device))
    _end(params, new_params, center, pull, skipped)


def _begin(grads: Sequence[Tensor], norms: Tensor | None, grad_scale: Tensor | None, found_inf: Tensor | None,
           params: Sequence[Tensor]) -> Tensor:  # fmt: skip
    """Unscales the gradients and takes their norms; returns whether the update is to be left out."""
    device = params[0].device
    skipped = torch.zeros((), dtype=torch.bool, device=device) if found_inf is None else found_inf.reshape(()) > 0
    if grad_scale is not None:
        for grad in grads:
            inverse = grad_scale.reshape(()).double().reciprocal().to(_wide(grad))
            _put(grad, _wide(grad) * inverse, skipped)
    if norms is not None:
        norms.copy_(torch.where(skipped, NO_GRADIENT, layer_norms(grads)))
    return skipped


def _end(params: Sequence[Tensor], new_params: list[Tensor], center: Tensor | None, pull: Tensor | None,
         skipped: Tensor) -> None:  # fmt: skip
    """Pulls and rounds, in this order."""
    wide = [torch.where(skipped, _wide(param), new) for param, new in zip(params, new_params, strict=True)]
    if center is not None and pull is not None:
        wide = [_in_wire_order(new, param) for param, new in zip(params, wide, strict=True)]
        blend_(wide, center, pull)
    for index, (param, new) in enumerate(zip(params, wide, strict=True)):
        _put(param, new, skipped if pull is None else skipped & (pull[index] == 0))


def _in_wire_order(value: Tensor, param: Tensor) -> Tensor:
    memory_format = torch.preserve_format if is_dense(param) else torch.contiguous_format
    return torch.empty_like(param, dtype=value.dtype, memory_format=memory_format).copy_(value)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _of_layer(values: Tensor, index: int) -> Tensor:
    return values if values.dim() == 0 else values[index]


def _put(tensor: Tensor, value: Tensor, skipped: Tensor) -> None:
    # Where skipped, the very bits: a NaN would not keep its own through a conversion.
    tensor.copy_(torch.where(skipped, tensor, value.to(tensor.dtype)))
