"""The local steps in plain PyTorch and float64: what the kernels behind StepTable are tested against.

It is itself tested against torch's optimizers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grawa_hvd.ops import AdamwHyperparameters, SgdHyperparameters

Hyperparameters = SgdHyperparameters | AdamwHyperparameters
Tensors = dict[str, Tensor]
# Of the result of up to 24 operations, each within half an eps of a value that is at most twice the sum of its terms.
ROUNDINGS = 24


def step(param: Tensor, grad: Tensor, state: Tensors, values: Hyperparameters, center: Tensor, pull: float) -> Tensors:
    """What a step and the pull leave of one layer: under "param", and its state by torch's names. Writes nothing."""
    wide = {key: tensor.double() for key, tensor in state.items()}
    if isinstance(values, SgdHyperparameters):
        after = _sgd(param.double(), grad.double(), wide, values)
    else:
        after = _adamw(param.double(), grad.double(), wide, values)
    return {**after, "param": after["param"] + pull * (center.double() - after["param"])}


def allowed(
    param: Tensor, grad: Tensor, state: Tensors, values: Hyperparameters, center: Tensor, pull: float
) -> Tensors:
    """How far from those of `step` tensors may be that were rounded once, of results in float32 or float64."""
    is_double = param.dtype == torch.float64
    # The sums of their terms' absolute values: a step uphill, of absolute values.
    uphill = values._replace(lr=-float(values.lr), maximize=False)
    sums = step(
        param.abs(), grad.abs(), {key: tensor.abs() for key, tensor in state.items()}, uphill, center.abs(), pull
    )
    relative = ROUNDINGS * torch.finfo(torch.float64 if is_double else torch.float32).eps
    if is_double and isinstance(values, AdamwHyperparameters):
        # The powers of its betas, always of float64, round beside 1, of which they leave a small part.
        relative /= 1 - values.beta2
    last = torch.finfo(param.dtype)
    exact = step(param, grad, state, values, center, pull)
    return {
        key: relative * sums[key] + last.eps / 2 * exact[key].abs() + last.tiny * last.eps / 2
        for key in sums
        if key != "step"
    }


def _sgd(param: Tensor, grad: Tensor, state: Tensors, values: SgdHyperparameters) -> Tensors:
    change = (-grad if values.maximize else grad) + values.weight_decay * param
    if values.momentum == 0:
        return {"param": param - float(values.lr) * change}
    buffer = values.momentum * state["momentum_buffer"] + (1 - values.dampening) * change
    change = change + values.momentum * buffer if values.nesterov else buffer
    return {"param": param - float(values.lr) * change, "momentum_buffer": buffer}


def _adamw(param: Tensor, grad: Tensor, state: Tensors, values: AdamwHyperparameters) -> Tensors:
    change = -grad if values.maximize else grad
    count, rate = state["step"].item() + 1, float(values.lr)
    mean = values.beta1 * state["exp_avg"] + (1 - values.beta1) * change
    mean_square = values.beta2 * state["exp_avg_sq"] + (1 - values.beta2) * change.square()
    root = mean_square.sqrt() / (1 - values.beta2**count) ** 0.5 + values.eps
    new = (1 - rate * values.weight_decay) * param - rate / (1 - values.beta1**count) * mean / root
    return {"param": new, "step": state["step"] + 1, "exp_avg": mean, "exp_avg_sq": mean_square}
