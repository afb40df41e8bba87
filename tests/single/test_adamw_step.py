import math
from typing import Any

import pytest
import torch
from devices import DEVICES, DTYPES, PLACES, name, values
from local_steps import PULL, STEPS, assert_as_exact_as_torch, by_torch, flat_center, gradients, layouts
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import reference_step

on_devices = pytest.mark.parametrize("device", DEVICES)
on_places = pytest.mark.parametrize(("device", "counts_on"), PLACES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
with_functions = pytest.mark.parametrize("function", [ops.adamw_step_, reference_step.adamw_step_])
# eps is one that float16 can hold.
PLAIN: dict[str, Any] = {"betas": (0.9, 0.999), "eps": 1e-4, "weight_decay": 0.0, "maximize": False}
SETTINGS = [
    PLAIN,
    {**PLAIN, "weight_decay": 0.1},
    {**PLAIN, "betas": (0.3, 0.5), "maximize": True, "weight_decay": 0.01},
    {**PLAIN, "betas": (0.0, 0.9)},
]


def arguments_of(setting: dict[str, Any]) -> tuple[Any, ...]:
    return (*setting["betas"], setting["eps"], setting["weight_decay"], setting["maximize"])


def states(dtype: torch.dtype, device: str, counts_on: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    means, squares = layouts(dtype, device, seed=7), [tensor.abs() for tensor in layouts(dtype, device, seed=8)]
    return means, squares, [torch.tensor(float(step), device=counts_on) for step in range(3, 3 + len(means))]


@on_places
@with_dtypes
@with_functions
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_is_as_exact_as_torch(
    device: str, counts_on: str, dtype: torch.dtype, function: Any, setting: dict[str, Any]
) -> None:
    start = layouts(dtype, device)

    def factory(params: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params, lr=0.0625, foreach=False, **setting)

    wanted, theirs = by_torch(factory, start, torch.float64), by_torch(factory, start, dtype)
    first = by_torch(factory, start, dtype, steps=1)  # torch's own first step makes the state
    params = layouts(dtype, device)
    for param, value in zip(params, first.params, strict=True):
        param.copy_(value)
    counts = [count.to(counts_on) for count in first.state("step")]
    state = [first.state("exp_avg"), first.state("exp_avg_sq"), counts]
    center, _ = flat_center(params)
    pull = torch.full((len(params),), PULL, dtype=torch.float64, device=device)
    lrs = [
        torch.tensor(0.0625),
        torch.tensor(0.0625, dtype=torch.float64, device=device),
        torch.full_like(pull, 0.0625),
    ]
    for step in range(1, STEPS):
        grads, norms = gradients(params, step), torch.empty(len(params), device=device)
        function(params, grads, *state, lrs[step % 3], *arguments_of(setting), center=center, pull=pull, norms=norms)
        # Of a gradient in another order than its parameter's, the sum in double is taken in that other order.
        is_bitwise = function is not reference_step.adamw_step_
        assert not is_bitwise or torch.equal(norms[:2], ops.layer_norms(grads)[:2].float())
        torch.testing.assert_close(norms, ops.layer_norms(grads).float(), rtol=2.0**-22, atol=0)  # the kernels: 2⁻²³
    assert_as_exact_as_torch(params, theirs.params, wanted.params)
    assert_as_exact_as_torch(state[0], theirs.state("exp_avg"), wanted.state("exp_avg"))
    assert_as_exact_as_torch(state[1], theirs.state("exp_avg_sq"), wanted.state("exp_avg_sq"))
    assert [step.item() for step in state[2]] == [STEPS] * len(params)


@on_places
@with_functions
def test_each_layer_is_corrected_by_its_own_count(device: str, counts_on: str, function: Any) -> None:
    params, grads = ([values(100, torch.float64, device, seed)] * 1 for seed in (1, 2))
    for count in (0.0, 1.0, 1000.0):
        mean, square = values(100, torch.float64, device, 3), values(100, torch.float64, device, 4).square()
        param = params[0].clone()
        optimizer = torch.optim.AdamW([param], lr=0.1, foreach=False)
        optimizer.state[param] = {"step": torch.tensor(count), "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}
        param.grad = grads[0]
        optimizer.step()
        mine, other = params[0].clone(), params[0].clone()
        steps = [torch.tensor(count, device=counts_on), torch.tensor(7.0, device=counts_on)]
        state = ([mean, mean.clone()], [square, square.clone()], steps)
        function([mine, other], [grads[0], grads[0].clone()], *state, torch.tensor(0.1, dtype=torch.float64),
                 0.9, 0.999, 1e-8, 1e-2, False)  # fmt: skip
        torch.testing.assert_close(mine, param, rtol=1e-14, atol=1e-14)
        assert [step.item() for step in steps] == [count + 1, 8.0]


@on_places
@with_dtypes
@with_functions
def test_unscales_gradients_in_place_as_grad_scaler_does(
    device: str, counts_on: str, dtype: torch.dtype, function: Any
) -> None:
    grads = gradients(layouts(dtype, device), 0)
    results = []
    for scale in (None, torch.tensor(8.0, device=device)):
        params, state = layouts(dtype, device), states(dtype, device, counts_on)
        scaled = [grad.clone() if scale is None else grad * 8 for grad in grads]
        norms = torch.empty(len(params), device=device)
        function(params, scaled, *state, torch.tensor(0.1), *arguments_of(PLAIN), norms=norms, grad_scale=scale)
        assert all(torch.equal(new, grad) for new, grad in zip(scaled, grads, strict=True))
        results.append([*params, *state[0], *state[1], *state[2], norms])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@on_devices
@with_dtypes
@with_functions
def test_after_an_overflow_only_the_pull_is_left(device: str, dtype: torch.dtype, function: Any) -> None:
    params, state = layouts(dtype, device), states(dtype, device, counts_on=device)
    grads = [torch.full_like(param, math.nan) for param in params]
    before = [tensor.clone() for group in (params, *state) for tensor in group]
    center, _ = flat_center(params)
    norms, pull = torch.empty(len(params), device=device), torch.zeros(len(params), device=device)
    pull[0] = 1
    amp = {"grad_scale": torch.tensor(8.0, device=device), "found_inf": torch.ones((), device=device)}
    setting = (torch.tensor(0.1), *arguments_of(PLAIN))
    function(params, grads, *state, *setting, center=center, pull=pull, norms=norms, **amp)
    after = [tensor for group in (params, *state) for tensor in group]
    assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
    assert torch.equal(params[0], center[: params[0].numel()])
    assert (norms == -1).all() and all(grad.isnan().all() for grad in grads)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_overflow_of_which_the_host_would_have_to_know_is_refused(device: str) -> None:
    params, state = layouts(torch.float32, device), states(torch.float32, device, counts_on="cpu")
    before = [tensor.clone() for group in (params, *state) for tensor in group]
    with pytest.raises(RuntimeError, match=f"steps are on the CPU: with found_inf, .* they must be on {device}"):
        ops.adamw_step_(params, gradients(params, 0), *state, torch.tensor(0.1), *arguments_of(PLAIN),
                        found_inf=torch.zeros((), device=device))  # fmt: skip
    after = [tensor for group in (params, *state) for tensor in group]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_is_bitwise_the_same_for_any_number_of_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            params, grads, means, squares = (
                [values(size, torch.bfloat16, seed=seed) for size in (100, 300001)] for seed in (3, 4, 5, 6)
            )
            squares, norms = [square.square() for square in squares], torch.empty(2)
            steps = [torch.tensor(3.0), torch.tensor(9.0)]
            ops.adamw_step_(params, grads, means, squares, steps, torch.tensor(0.1), norms=norms)
            results.append([*params, *means, *squares, norms])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_tells_autograd_what_it_wrote_and_passes_opcheck() -> None:
    params = [values(size, torch.float32) for size in (3, 20)]
    grads, means, squares = ([values(size, torch.float32, seed=seed) for size in (3, 20)] for seed in (1, 2, 3))
    squares = [square.square() for square in squares]
    steps = [torch.tensor(3.0), torch.tensor(9.0)]
    arguments = (params, grads, means, squares, steps, torch.tensor(0.1), *arguments_of(PLAIN))
    written = (*params, *means, *squares, *steps)
    versions = [tensor._version for tensor in written]
    ops.adamw_step_(*arguments)
    assert all(tensor._version > version for tensor, version in zip(written, versions, strict=True))
    torch.library.opcheck(torch.ops.grawa.adamw_step_, arguments)
    tail = {"center": torch.rand(23), "pull": torch.rand(2), "norms": torch.empty(2)}
    torch.library.opcheck(torch.ops.grawa.adamw_step_, arguments, tail)


ONE = [torch.zeros(2)]
LR = torch.tensor(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE, [torch.zeros(2)], [], [torch.zeros(2)], [torch.zeros(())], LR), "exp_avgs has 0 tensors"),
        ((ONE, [torch.zeros(2)], [torch.zeros(2)], [torch.zeros(3)], [LR], LR), r"exp_avg_sqs\[0\] has shape \[3\]"),
        ((ONE, [torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2)], [], LR), "steps has 0 tensors"),
        ((ONE, [torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2)], [LR.int()], LR), "steps has dtype Int"),
        ((ONE, [torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2)], [LR], LR, 1.0), "beta1 is 1: it must be in"),
        ((ONE, [torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2)], [LR], LR, 0.9, 0.9, -1.0), "eps is -1"),
    ],
)
def test_error_names_the_argument(arguments: Any, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.adamw_step_(*arguments)
