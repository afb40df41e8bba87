"""StepTable beside torch's own optimizers: the same steps, the same state, and torch's step wherever it cannot."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import DEVICES, PLACES, name
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import AdamwHyperparameters, SgdHyperparameters, StepTable

on_devices = pytest.mark.parametrize("device", DEVICES)
with_algorithms = pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
SHAPES = [(40, 30), (7,), (), (0, 3), (4, 3, 5, 5), (20001,)]
PULL = 0.125


def parameters(device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
    params[4] = params[4].to(memory_format=torch.channels_last)
    return [torch.nn.Parameter(param) for param in params]


def optimizer_of(algorithm: str, params: list[Tensor]) -> torch.optim.Optimizer:
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02, "weight_decay": 0.1}]
    if algorithm == "sgd":
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[Any]:
    if isinstance(optimizer, torch.optim.SGD):
        return [
            SgdHyperparameters(*(group[key] for key in SgdHyperparameters._fields)) for group in optimizer.param_groups
        ]
    return [
        AdamwHyperparameters(g["lr"], *g["betas"], g["eps"], g["weight_decay"], g["maximize"])
        for g in optimizer.param_groups
    ]


class Setup:
    """An optimizer with the table of its steps, centers of its parameters, and a row for each norm."""

    def __init__(self, algorithm: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.params = parameters(device, dtype)
        self.optimizer = optimizer_of(algorithm, self.params)
        self.table = StepTable(algorithm, self.params, [0, 0, 1, 1, 1, 1])  # type: ignore[arg-type]
        self.norms = torch.full((len(SHAPES) + 1,), 5.0, device=device)
        self.rows = [3, -1, 0, 1, 4, 5]
        self.centers = [torch.linspace(-1, 1, param.numel(), device=device, dtype=dtype) for param in self.params]
        self.table.set_targets(self.rows, self.centers, [param.stride() for param in self.params])

    def set_grads(self, seed: int, missing: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(seed)
        for index, param in enumerate(self.params):
            grad = torch.randn(param.shape, generator=generator).to(param)
            param.grad = None if index in missing else torch.empty_like(param).copy_(grad)

    def step(self, **options: Any) -> bool:
        arguments = {"pull": PULL, "norms": self.norms, **options}
        return self.table.step(self.optimizer.state, hyperparameters(self.optimizer), **arguments)

    def step_by_torch(self) -> None:
        self.optimizer.step()
        with torch.no_grad():
            for param, center in zip(self.params, self.centers, strict=True):
                param.lerp_(center.as_strided(param.shape, param.stride()), PULL)

    def move_counts(self, device: str) -> None:
        """AdamW's counts of steps to that of the parameters, where a capturable optimizer has them, or back."""
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].to(device)

    def tensors(self) -> list[Tensor]:
        states = [self.optimizer.state.get(param, {}) for param in self.params]
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [tensor.detach().clone() for tensor in (*self.params, *tensors, self.norms)]


def assert_same(ours: Setup, theirs: Setup) -> None:
    for mine, want in zip(ours.params, theirs.params, strict=True):
        # Up to six roundings a step, of values up to 4, over ten steps.
        torch.testing.assert_close(mine, want, rtol=0, atol=256 * torch.finfo(mine.dtype).eps)
    for param, other in zip(ours.params, theirs.params, strict=True):
        mine, want = ours.optimizer.state.get(param, {}), theirs.optimizer.state.get(other, {})
        assert list(mine) == list(want)
        for key, value in mine.items():
            assert (value.dtype, value.shape, value.stride()) == (want[key].dtype, want[key].shape, want[key].stride())
            allowed = 256 * torch.finfo(value.dtype).eps
            torch.testing.assert_close(value, want[key], rtol=0, atol=allowed, check_device=False)


@pytest.mark.parametrize(("device", "counts_on"), PLACES)
@with_algorithms
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name)
def test_steps_as_torch_does_and_pulls_and_takes_norms(
    algorithm: str, device: str, counts_on: str, dtype: torch.dtype
) -> None:
    ours, theirs = Setup(algorithm, device, dtype), Setup(algorithm, device, dtype)
    for seed in range(10):
        missing = () if seed == 0 else (seed % len(SHAPES),)
        ours.set_grads(seed, missing), theirs.set_grads(seed, missing)
        if not ours.step():
            assert seed == 0  # torch makes the state
            ours.step_by_torch()
            ours.move_counts(counts_on)
        else:
            grads = [None if i in missing else param.grad for i, param in enumerate(ours.params)]
            wanted = [-1.0 if grad is None else ops.layer_norms([grad]).item() for grad in grads]
            for row, norm in zip(ours.rows, wanted, strict=True):
                assert row < 0 or ours.norms[row].item() == torch.tensor(norm).float().item()
            assert ours.norms[2] == 5 and ours.norms[6] == 5
        theirs.step_by_torch()
    assert_same(ours, theirs)


@with_algorithms
def test_state_goes_to_torch_and_back(algorithm: str) -> None:
    ours, theirs = Setup(algorithm), Setup(algorithm)
    for seed in range(3):
        ours.set_grads(seed), theirs.set_grads(seed)
        ours.step() or ours.step_by_torch()
        theirs.step_by_torch()
    theirs.optimizer.load_state_dict(copy.deepcopy(ours.optimizer.state_dict()))
    ours.optimizer.load_state_dict(copy.deepcopy(theirs.optimizer.state_dict()))
    gc.collect()
    for seed in range(3, 6):
        ours.set_grads(seed), theirs.set_grads(seed)
        assert ours.step()
        theirs.step_by_torch()
    assert_same(ours, theirs)


def _replace_tensor(setup: Setup, key: str) -> None:
    state = setup.optimizer.state[setup.params[0]]
    state[key] = state[key] * 2


def _replace_inner(setup: Setup, key: str) -> None:
    state = setup.optimizer.state[setup.params[0]]
    setup.optimizer.state[setup.params[0]] = {**state, key: state[key] * 2}


def _replace_outer(setup: Setup, key: str) -> None:
    _replace_inner(setup, key)
    setup.optimizer.state = dict(reversed(setup.optimizer.state.items()))  # type: ignore[assignment]


def _replace_data(setup: Setup, key: str) -> None:
    tensor = setup.optimizer.state[setup.params[0]][key]
    tensor.data = tensor * 2


@with_algorithms
@pytest.mark.parametrize("replace", [_replace_tensor, _replace_inner, _replace_outer, _replace_data])
def test_sees_every_replacement_of_state(algorithm: str, replace: Callable[[Setup, str], None]) -> None:
    key = "momentum_buffer" if algorithm == "sgd" else "exp_avg"
    ours, theirs = Setup(algorithm), Setup(algorithm)
    for seed in range(4):
        ours.set_grads(seed), theirs.set_grads(seed)
        assert ours.step() or seed == 0
        if seed == 0:
            ours.step_by_torch()
        theirs.step_by_torch()
        replace(ours, key), replace(theirs, key)
    assert_same(ours, theirs)
    ours.optimizer.state.clear()
    assert not ours.step()


def _sparse_grad(setup: Setup) -> None:
    setup.params[0].grad = torch.sparse_coo_tensor([[0], [0]], [1.0], SHAPES[0], check_invariants=True)


def _transposed_grad(setup: Setup) -> None:
    setup.params[0].grad = None
    setup.params[0].grad = torch.ones(30, 40).t()


def _no_state(setup: Setup) -> None:
    del setup.optimizer.state[setup.params[1]]


def _none_in_state(setup: Setup) -> None:
    state = setup.optimizer.state[setup.params[1]]
    state["momentum_buffer" if "momentum_buffer" in state else "exp_avg"] = None


def _half_state(setup: Setup) -> None:
    state = setup.optimizer.state[setup.params[1]]
    key = "momentum_buffer" if "momentum_buffer" in state else "exp_avg_sq"
    state[key] = state[key].half()


def _other_memory_format(setup: Setup) -> None:
    for param in (setup.params[4],):
        param.data = param.data.contiguous()
        param.grad = torch.zeros_like(param)
        for key, value in setup.optimizer.state[param].items():
            if value.dim():
                setup.optimizer.state[param][key] = value.contiguous()


def _shared_memory(setup: Setup) -> None:
    setup.params[1].data = setup.params[5].data[:7]


def _gaps(setup: Setup) -> None:
    setup.params[1].data = torch.zeros(14)[::2]


@with_algorithms
@pytest.mark.parametrize(
    "change",
    [
        _sparse_grad,
        _transposed_grad,
        _no_state,
        _none_in_state,
        _half_state,
        _other_memory_format,
        _shared_memory,
        _gaps,
    ],
)
def test_leaves_to_torch_what_it_cannot_step_and_changes_nothing(
    algorithm: str, change: Callable[[Setup], None]
) -> None:
    setup = Setup(algorithm)
    for seed in range(2):
        setup.set_grads(seed)
        setup.step() or setup.step_by_torch()
    change(setup)
    before = setup.tensors()
    assert not setup.step()
    assert all(torch.equal(a, b) for a, b in zip(setup.tensors(), before, strict=True))


def test_leaves_amsgrad_and_devices_without_kernels_to_torch() -> None:
    setup = Setup("adamw")
    for group in setup.optimizer.param_groups:
        group["amsgrad"] = True
    setup.set_grads(0)
    setup.optimizer.step()
    assert not setup.step()
    plain = SgdHyperparameters(0.1, 0.0, 0.0, 0.0, False, False)
    assert not StepTable("sgd", [torch.zeros(3, device="meta")], [0]).step({}, [plain])
    assert not StepTable("sgd", [torch.zeros(3), torch.zeros(3, device="meta")], [0, 0]).step({}, [plain])


def test_sgd_without_momentum_needs_no_state() -> None:
    setup = Setup("sgd")
    setup.set_grads(0)
    for group in setup.optimizer.param_groups:
        group["momentum"], group["nesterov"] = 0.0, False
    assert setup.step()
    assert not setup.optimizer.state


@on_devices
@with_algorithms
def test_overflow_leaves_the_pull_alone_and_scales_are_divided_by(algorithm: str, device: str) -> None:
    setup, twin = Setup(algorithm, device), Setup(algorithm, device)
    scale = torch.tensor(1024.0, device=device)
    for each in (setup, twin):
        each.set_grads(0)
        each.step_by_torch()
        each.move_counts(device)  # which alone knows of an overflow
        each.set_grads(1)
    for param in setup.params:
        param.grad.mul_(scale)  # type: ignore[union-attr]
    assert setup.step(grad_scale=scale, found_inf=torch.zeros((), device=device)) and twin.step()
    assert all(torch.equal(a, b) for a, b in zip(setup.tensors(), twin.tensors(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(setup.params, twin.params, strict=True))  # type: ignore[arg-type]
    wanted = [param.detach().clone() for param in setup.params]
    states = setup.tensors()[len(SHAPES) : -1]
    ops.blend_(wanted, torch.cat(setup.centers), torch.full((len(SHAPES),), PULL, device=device))
    setup.params[0].grad.fill_(math.inf)  # type: ignore[union-attr]
    assert setup.step(grad_scale=scale, found_inf=torch.ones((), device=device))
    for param, want in zip(setup.params, wanted, strict=True):
        torch.testing.assert_close(param.detach(), want, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(setup.tensors()[len(SHAPES) : -1], states, strict=True))
    assert all(setup.norms[row] == -1 for row in setup.rows if row >= 0)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_leaves_a_step_to_torch_whose_overflow_the_counts_on_the_host_cannot_follow(device: str) -> None:
    setup = Setup("adamw", device)
    setup.set_grads(0)
    setup.step_by_torch()
    setup.set_grads(1)
    before = setup.tensors()
    assert not setup.step(found_inf=torch.zeros((), device=device))
    assert all(torch.equal(a, b) for a, b in zip(setup.tensors(), before, strict=True))
    setup.move_counts(device)
    assert setup.step(found_inf=torch.zeros((), device=device))


def test_tells_autograd_what_it_wrote() -> None:
    setup = Setup("adamw")
    setup.set_grads(0)
    setup.step_by_torch()
    setup.set_grads(1, missing=(1,))
    state = setup.optimizer.state[setup.params[0]]
    written = [setup.params[0], setup.params[1], *state.values(), setup.norms]
    versions = [tensor._version for tensor in written]
    assert setup.step()
    assert all(tensor._version > version for tensor, version in zip(written, versions, strict=True))
    assert setup.params[0].grad._version == 1  # type: ignore[union-attr]  # its own copy_


def test_error_names_the_argument() -> None:
    params = [torch.zeros(3), torch.zeros(2)]
    plain = SgdHyperparameters(0.1, 0.0, 0.0, 0.0, False, False)
    with pytest.raises(RuntimeError, match='algorithm is "adam"'):
        StepTable("adam", params, [0, 0])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="groups has 1 entries"):
        StepTable("sgd", params, [0])
    table = StepTable("sgd", params, [0, 1])
    with pytest.raises(RuntimeError, match="norm_rows has 1 entries"):
        table.set_targets([0], [None, None], [(1,), (1,)])
    with pytest.raises(RuntimeError, match=r"centers has shape \[2\]: \[3\] is needed"):
        table.set_targets([0, 1], [torch.zeros(2), None], [(1,), (1,)])
    with pytest.raises(RuntimeError, match=r"wire_strides\[1\] has 2 entries"):
        table.set_targets([0, 1], [None, None], [(1,), (1, 1)])
    table.set_targets([0, 4], [None, None], [(1,), (1,)])
    with pytest.raises(RuntimeError, match="hyperparameters has 1 entries"):
        table.step({}, [plain])
    with pytest.raises(RuntimeError, match=r"hyperparameters\[1\] must be a tuple of 6"):
        table.step({}, [plain, (1.0,)])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match=r"pull is 2: it must be in \[0, 1\]"):
        table.step({}, [plain, plain], pull=2.0)
    with pytest.raises(RuntimeError, match=r"norms has shape \[2\]"):
        table.step({}, [plain, plain], norms=torch.zeros(2))
    with pytest.raises(RuntimeError, match="grad_scale has dtype Half"):
        table.step({}, [plain, plain], grad_scale=torch.ones(()).half())
