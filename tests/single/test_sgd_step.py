import math
from typing import Any

import pytest
import torch
from devices import DEVICES, DTYPES, name, values
from local_steps import PULL, STEPS, assert_as_exact_as_torch, by_torch, flat_center, gradients, layouts
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import reference_step

on_devices = pytest.mark.parametrize("device", DEVICES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
with_functions = pytest.mark.parametrize("function", [ops.sgd_step_, reference_step.sgd_step_])
PLAIN: dict[str, Any] = {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "nesterov": False, "maximize": False}
SETTINGS = [
    PLAIN,
    {**PLAIN, "momentum": 0.9},
    {**PLAIN, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    {**PLAIN, "momentum": 0.5, "dampening": 0.3, "maximize": True},
    {**PLAIN, "weight_decay": 0.05, "maximize": True},
]


@on_devices
@with_dtypes
@with_functions
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_is_as_exact_as_torch(device: str, dtype: torch.dtype, function: Any, setting: dict[str, Any]) -> None:
    start = layouts(dtype, device)

    def factory(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=0.125, foreach=False, **setting)

    wanted, theirs = by_torch(factory, start, torch.float64), by_torch(factory, start, dtype)
    first = by_torch(factory, start, dtype, steps=1)  # torch's own first step makes the state
    params = layouts(dtype, device)
    for param, value in zip(params, first.params, strict=True):
        param.copy_(value)
    buffers = first.state("momentum_buffer") if setting["momentum"] else []
    center, _ = flat_center(params)
    pull = torch.full((len(params),), PULL, dtype=torch.float64, device=device)
    lrs = [torch.tensor(0.125), torch.tensor(0.125, dtype=torch.float64, device=device), torch.full_like(pull, 0.125)]
    for step in range(1, STEPS):
        grads, norms = gradients(params, step), torch.empty(len(params), dtype=torch.float64, device=device)
        function(params, grads, buffers, lrs[step % 3], **setting, center=center, pull=pull, norms=norms)
        # Of a gradient in another order than its parameter's, the sum in double is taken in that other order.
        is_bitwise = function is not reference_step.sgd_step_
        assert not is_bitwise or torch.equal(norms[:2].to(dtype), ops.layer_norms(grads)[:2].to(dtype))
        torch.testing.assert_close(
            norms, ops.layer_norms(grads).double(), rtol=2.0**-22, atol=0
        )  # the kernels of norms: 2⁻²³
    assert_as_exact_as_torch(params, theirs.params, wanted.params)
    if buffers:
        momenta = "momentum_buffer"
        assert_as_exact_as_torch(buffers, theirs.state(momenta), wanted.state(momenta))


@on_devices
@with_dtypes
@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-6, 1.0, 1e4, 1e25])
def test_norms_are_bitwise_those_of_layer_norms(device: str, dtype: torch.dtype, magnitude: float) -> None:
    """Of any magnitude, though squares may leave the range of float, and of any number of pieces and chunks."""
    sizes = (1, 127, 128, 1024, 1153, 16384, 33001)
    grads = [(values(size, torch.float64) * magnitude).to(dtype).to(device) for size in sizes]
    params = [torch.zeros_like(grad) for grad in grads]
    norms = torch.empty(len(grads), dtype=torch.float64, device=device)
    ops.sgd_step_(params, grads, [], torch.tensor(0.1), 0.0, 0.0, 0.0, False, False, norms=norms)
    wide = torch.empty(0, dtype=torch.float64, device=device)  # so that the norms are not rounded to float
    assert torch.equal(norms.nan_to_num(-2), ops.layer_norms([*grads, wide])[:-1].nan_to_num(-2))


@on_devices
@with_dtypes
@pytest.mark.parametrize("center_dtype", DTYPES, ids=name)
def test_norms_are_those_of_layer_norms_wherever_operands_lie(
    device: str, dtype: torch.dtype, center_dtype: torch.dtype
) -> None:
    """Whether the parameter lies to whole words as its gradient does, and the center too, or is of another dtype."""
    sizes = (5, 1000, 4099, 33001)
    flat = values(sum(sizes) + len(sizes), dtype, device, seed=1)
    params = [part[1:] for part in flat.split([size + 1 for size in sizes])]
    grads = [values(size, dtype, device) for size in sizes]
    wanted = [param.clone() for param in params]
    center = values(sum(sizes), center_dtype, device, seed=2)
    norms = torch.empty(len(sizes), dtype=torch.float64, device=device)
    pull, setting = torch.full_like(norms, PULL), (torch.tensor(0.125), 0.0, 0.0, 0.0, False, False)
    ops.sgd_step_(params, grads, [], *setting, center=center, pull=pull, norms=norms)
    wide = torch.empty(0, dtype=torch.float64, device=device)  # so that the norms are not rounded to float
    assert torch.equal(norms, ops.layer_norms([*grads, wide])[:-1])
    ops.sgd_step_(wanted, grads, [], *setting, center=center, pull=pull)
    assert all(torch.equal(param, want) for param, want in zip(params, wanted, strict=True))


@on_devices
@with_dtypes
@with_functions
def test_unscales_gradients_in_place_as_grad_scaler_does(device: str, dtype: torch.dtype, function: Any) -> None:
    grads = gradients(layouts(dtype, device), 0)
    results = []
    for scale in (None, torch.tensor(8.0, device=device)):
        params, buffers = layouts(dtype, device), layouts(dtype, device, seed=7)
        scaled = [grad.clone() if scale is None else grad * 8 for grad in grads]
        norms = torch.empty(len(params), device=device)
        function(params, scaled, buffers, torch.tensor(0.1), 0.9, 0.0, 0.0, False, False, norms=norms, grad_scale=scale)
        assert all(torch.equal(new, grad) for new, grad in zip(scaled, grads, strict=True))
        results.append([*params, *buffers, norms])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@on_devices
@with_dtypes
@with_functions
def test_after_an_overflow_only_the_pull_is_left(device: str, dtype: torch.dtype, function: Any) -> None:
    params, buffers = layouts(dtype, device), layouts(dtype, device, seed=7)
    grads = [torch.full_like(param, math.inf) for param in params]
    before = [tensor.clone() for tensor in (*params, *buffers, *grads)]
    center, _ = flat_center(params)
    norms, pull = torch.empty(len(params), device=device), torch.zeros(len(params), device=device)
    amp = {"grad_scale": torch.tensor(8.0, device=device), "found_inf": torch.ones((), device=device)}
    setting = (torch.tensor(0.1), 0.9, 0.0, 0.1, False, False)
    function(params, grads, buffers, *setting, center=center, pull=pull, norms=norms, **amp)
    assert all(torch.equal(a, b) for a, b in zip((*params, *buffers, *grads), before, strict=True))
    assert (norms == -1).all()
    pull.fill_(0.25)
    wanted = [param.clone() for param in params]
    wanted[5] = params[5].clone(memory_format=torch.contiguous_format)
    ops.blend_(wanted, center, pull)
    function(params, grads, buffers, *setting, center=center, pull=pull, norms=norms, **amp)
    for param, want in zip(params, wanted, strict=True):
        torch.testing.assert_close(param, want, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    assert all(torch.equal(a, b) for a, b in zip((*buffers, *grads), before[len(params) :], strict=True))


@on_devices
@with_dtypes
@with_functions
def test_zeros_are_left_out_and_pull_one_is_the_center(device: str, dtype: torch.dtype, function: Any) -> None:
    params = [torch.full((2000,), math.inf, dtype=dtype, device=device) for _ in range(2)]
    grads = [values(2000, dtype, device) for _ in range(2)]
    center = values(4000, torch.float32, device, seed=3)
    center[:2000] = math.nan
    pull = torch.tensor([0.0, 1.0], device=device)
    function(params, grads, [], torch.tensor(0.1), 0.0, 0.0, 0.0, False, False, center=center, pull=pull)
    assert (params[0] == math.inf).all()
    assert torch.equal(params[1], center[2000:].to(dtype))


def test_is_bitwise_the_same_for_any_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    center = values(300101, torch.float32)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            params, grads, buffers = (
                [values(size, torch.float32, seed=seed) for size in (100, 300001)] for seed in (3, 4, 5)
            )
            norms = torch.empty(2, dtype=torch.float64)
            setting = (torch.tensor(0.1), 0.9, 0.0, 0.1, True, False)
            ops.sgd_step_(params, grads, buffers, *setting, center=center, pull=torch.full((2,), 0.1), norms=norms)
            results.append([*params, *buffers, norms])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_tells_autograd_what_it_wrote_and_passes_opcheck() -> None:
    params = [torch.nn.Parameter(values(size, torch.float32)) for size in (3, 20)]
    grads, buffers = ([values(size, torch.float32, seed=seed) for size in (3, 20)] for seed in (1, 2))
    setting = (torch.tensor(0.1), 0.9, 0.0, 0.0, False, False)
    tail = {"center": torch.rand(23), "pull": torch.rand(2), "norms": torch.empty(2)}
    versions = [tensor._version for tensor in (*params, *buffers, tail["norms"])]
    ops.sgd_step_(params, grads, buffers, *setting, **tail)
    written = (*params, *buffers, tail["norms"])
    assert all(tensor._version > version for tensor, version in zip(written, versions, strict=True))
    assert all(grad._version == 0 for grad in grads)
    plain = [param.detach() for param in params]
    torch.library.opcheck(torch.ops.grawa.sgd_step_, (plain, grads, buffers, *setting))
    torch.library.opcheck(torch.ops.grawa.sgd_step_, (plain, grads, buffers, *setting), tail)


ONES = [torch.ones(2), torch.ones(3)]
LR = torch.tensor(0.1)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((ONES[:1], [], [], LR), {}, "grads has 0 tensors: as many as params, 1, are needed"),
        ((ONES[:1], [torch.ones(3)], [], LR), {}, r"grads\[0\] has shape \[3\]: that of params\[0\], \[2\]"),
        ((ONES[:1], [torch.ones(2).half()], [], LR), {}, r"grads\[0\] has dtype Half"),
        ((ONES[:1], [torch.zeros(2)], [torch.zeros(2)], LR), {}, "momentum_buffers has 1 tensors, but momentum is 0"),
        ((ONES[:1], [torch.zeros(2)], [], LR, 0.9), {}, "momentum_buffers has 0 tensors"),
        ((ONES[:1], [torch.zeros(2)], [], LR, -1.0), {}, "momentum is -1: it must be at least 0"),
        ((ONES[:1], [torch.zeros(2)], [], LR, 0.0, 0.0, 0.0, True), {}, "nesterov needs a momentum above 0"),
        ((ONES[:1], [torch.zeros(2)], [], torch.ones(3)), {}, r"lr has shape \[3\]: \[\] or \[1\] is needed"),
        ((ONES[:1], [torch.zeros(2)], [], LR), {"center": torch.ones(2)}, "center and pull go together"),
        ((ONES[:1], [torch.zeros(2)], [], LR), {"norms": torch.ones(2)}, r"norms has shape \[2\]"),
        ((ONES[:1], [torch.zeros(2)], [], LR), {"found_inf": torch.ones(2)}, r"found_inf has shape \[2\]"),
        ((ONES[:1] * 2, [torch.zeros(2), torch.zeros(2)], [], LR), {}, "share memory: separate memory is needed"),
        (([torch.ones(2).expand(3, 2)], [torch.zeros(3, 2)], [], LR), {}, r"params\[0\] has elements that share"),
    ],
)
def test_error_names_the_argument(arguments: Any, options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.sgd_step_(*arguments, **options)
    assert (ONES[0] == 1).all()
