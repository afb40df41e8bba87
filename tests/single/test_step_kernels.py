"""The kernels of the local steps, called by StepTable, beside the reference and torch's own optimizers."""

from __future__ import annotations

import math
from itertools import product

import pytest
import reference_step
import torch
from devices import DEVICES, DTYPES, PLACES, name, values
from local_steps import ADAMW, PULL, SGD, Layers, assert_near, layouts, norms_of, shifted
from reference_step import Hyperparameters

from grawa_hvd.ops import SgdHyperparameters

SGD_SETTINGS = [
    SGD,
    SGD._replace(momentum=0.0),
    SGD._replace(nesterov=True, weight_decay=0.05),
    SGD._replace(momentum=0.5, dampening=0.3, maximize=True),
    SGD._replace(momentum=0.0, weight_decay=0.05, maximize=True),
]
ADAMW_SETTINGS = [
    ADAMW,
    ADAMW._replace(weight_decay=0.1),
    ADAMW._replace(beta1=0.3, beta2=0.5, weight_decay=0.01, maximize=True),
    ADAMW._replace(beta1=0.0, beta2=0.9),
]
SGD_PLACES = [(device, device) for device in DEVICES]  # it counts nowhere
STEPPERS = [*((SGD, *place) for place in SGD_PLACES), *((ADAMW, *place) for place in PLACES)]
CASES = [*product(SGD_SETTINGS, SGD_PLACES), *product(ADAMW_SETTINGS, PLACES)]
on_devices = pytest.mark.parametrize("device", DEVICES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
with_both = pytest.mark.parametrize("setting", [SGD, ADAMW], ids=["sgd", "adamw"])
with_steppers = pytest.mark.parametrize(("setting", "device", "counts_on"), STEPPERS, ids=name)


@pytest.mark.parametrize("setting", [*SGD_SETTINGS, *ADAMW_SETTINGS], ids=name)
def test_reference_steps_as_torch_does(setting: Hyperparameters) -> None:
    layers = Layers(setting, layouts(torch.float64, "cpu"))
    options = setting._asdict()
    optimizer: torch.optim.Optimizer
    if isinstance(setting, SgdHyperparameters):
        optimizer = torch.optim.SGD(layers.params, **options, foreach=False)
    else:
        betas = options.pop("beta1"), options.pop("beta2")
        optimizer = torch.optim.AdamW(layers.params, betas=betas, **options, foreach=False)
    optimizer.state.update(layers.state)
    arguments = [
        (param, grad, layers.state[param], setting, param, 0.0)
        for param, grad in zip(layers.params, layers.grads, strict=True)
    ]
    wanted = [reference_step.step(*each) for each in arguments]
    allowed = [reference_step.allowed(*each) for each in arguments]
    optimizer.step()
    for param, want, most in zip(layers.params, wanted, allowed, strict=True):
        assert_near({**layers.state[param], "param": param}, want, most)


@pytest.mark.parametrize(("setting", "device", "counts_on"), [(setting, *place) for setting, place in CASES], ids=name)
@with_dtypes
def test_steps_as_the_reference_does(setting: Hyperparameters, device: str, counts_on: str, dtype: torch.dtype) -> None:
    layers = Layers(setting, layouts(dtype, device), counts_on)
    for _ in range(2):
        layers.check_step()


@on_devices
@with_dtypes
@with_both
@pytest.mark.parametrize("magnitude", [0.0, 1e-30, 1e-6, 1.0, 1e4, 1e25])
def test_norms_are_bitwise_those_of_layer_norms(
    setting: Hyperparameters, device: str, dtype: torch.dtype, magnitude: float
) -> None:
    """Of any magnitude, though squares may leave the range of float, and of any number of pieces and chunks."""
    sizes = (1, 127, 128, 1024, 1153, 16384, 33001)
    layers = Layers(setting, [torch.zeros(size, dtype=dtype, device=device) for size in sizes], device)
    for param, size in zip(layers.params, sizes, strict=True):
        param.grad = (values(size, torch.float64) * magnitude).to(dtype).to(device)
    layers.step(norms=layers.norms)
    assert torch.equal(layers.norms.nan_to_num(-2), norms_of(layers.grads).nan_to_num(-2))


@on_devices
@with_dtypes
@with_both
@pytest.mark.parametrize("center_dtype", DTYPES, ids=name)
def test_is_the_same_wherever_operands_lie_and_without_norms(
    setting: Hyperparameters, device: str, dtype: torch.dtype, center_dtype: torch.dtype
) -> None:
    """Parameter, gradient and state each lie on or off whole words, and the center is of any dtype."""
    cases = [(33001, 1, 0, 0), *((4099, *shifts) for shifts in product((0, 1), repeat=3))]
    results = []
    for has_norms in (True, False):
        params = [shifted(values(size, dtype, device, seed=1), shift) for size, shift, _, _ in cases]
        layers = Layers(setting, params, device, center_dtype)
        for param, grad, (_, _, grad_shift, state_shift) in zip(params, layers.grads, cases, strict=True):
            param.grad = shifted(grad, grad_shift)
            key, tensor = layers.state[param].popitem()
            layers.state[param][key] = shifted(tensor, state_shift)
        if has_norms:
            layers.check_step()
        else:
            layers.step()
        results.append(layers.written())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@with_steppers
@with_dtypes
def test_unscales_gradients_in_place_as_grad_scaler_does(
    setting: Hyperparameters, device: str, counts_on: str, dtype: torch.dtype
) -> None:
    plain, scaled = (Layers(setting, layouts(dtype, device), counts_on) for _ in range(2))
    for grad in scaled.grads:
        grad.mul_(8)
    amp = {"grad_scale": torch.tensor(8.0, device=device), "found_inf": torch.zeros((), device=device)}
    if counts_on != device:
        del amp["found_inf"]  # the host could not tell which steps to count
    plain.step(norms=plain.norms)
    scaled.step(norms=scaled.norms, **amp)
    for a, b in ((plain.written(), scaled.written()), (plain.grads, scaled.grads), ([plain.norms], [scaled.norms])):
        assert all(torch.equal(mine, other) for mine, other in zip(a, b, strict=True))


@on_devices
@with_dtypes
@with_both
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_after_an_overflow_only_the_pull_is_left(
    setting: Hyperparameters, device: str, dtype: torch.dtype, bad: float
) -> None:
    layers = Layers(setting, layouts(dtype, device), counts_on=device)
    layers.grads[0][0] = bad
    grads, before = [grad.clone() for grad in layers.grads], layers.written()
    amp = {"grad_scale": torch.tensor(8.0, device=device), "found_inf": torch.ones((), device=device)}
    layers.step(0.0, norms=layers.norms, **amp)
    assert all(torch.equal(a, b) for a, b in zip(layers.written(), before, strict=True))
    assert (layers.norms == -1).all()
    centers = [center.as_strided(p.shape, p.stride()) for p, center in zip(layers.params, layers.centers, strict=True)]
    wanted = [param.double().lerp(center.double(), PULL) for param, center in zip(layers.params, centers, strict=True)]
    layers.step(PULL, norms=layers.norms, **amp)
    eps = torch.finfo(dtype).eps
    for param, want in zip(layers.params, wanted, strict=True):
        # Four roundings of values below 16, each by at most 4 eps of the arithmetic, and one to the dtype.
        torch.testing.assert_close(param.double(), want, rtol=eps / 2, atol=16 * min(eps, 2**-23))
    layers.step(1.0, norms=layers.norms, **amp)
    assert all(torch.equal(param, center) for param, center in zip(layers.params, centers, strict=True))
    count = len(layers.params)
    assert all(torch.equal(a, b) for a, b in zip(layers.written()[count:], before[count:], strict=True))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(layers.grads, grads, strict=True))


@on_devices
@with_dtypes
@with_both
def test_zeros_are_left_out_and_pull_one_is_the_center(
    setting: Hyperparameters, device: str, dtype: torch.dtype
) -> None:
    """The product of 0 and an infinite operand would not be 0."""
    params = [torch.full((2000,), math.inf, dtype=dtype, device=device) for _ in range(2)]
    layers = Layers(setting, params, device, center_dtype=torch.float32)
    layers.centers[0].fill_(math.nan)
    layers.step(0.0)
    assert all((param == math.inf).all() for param in params)
    layers.step(1.0)
    assert params[0].isnan().all()
    assert torch.equal(params[1], layers.centers[1].to(dtype))


@pytest.mark.parametrize(("setting", "dtype"), [(SGD_SETTINGS[2], torch.float32), (ADAMW, torch.bfloat16)])
def test_is_bitwise_the_same_for_any_number_of_threads(setting: Hyperparameters, dtype: torch.dtype) -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            layers = Layers(setting, [values(size, dtype) for size in (100, 300001)])
            layers.step(norms=layers.norms)
            results.append([*layers.written(), layers.norms])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))
