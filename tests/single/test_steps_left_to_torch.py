"""The steps that StepTable does not make: it changes nothing, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from optimizer_steps import SHAPES, Setup
from torch import Tensor

from grawa_hvd.ops import SgdHyperparameters, StepTable

with_algorithms = pytest.mark.parametrize("algorithm", ["sgd", "adamw"])


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


def _shorter_state(setup: Setup) -> None:
    state = setup.optimizer.state[setup.params[1]]
    key = "momentum_buffer" if "momentum_buffer" in state else "exp_avg_sq"
    state[key] = state[key][:3]


def _other_memory_format(setup: Setup) -> None:
    for param in (setup.params[4],):
        param.data = param.data.contiguous()
        param.grad = torch.zeros_like(param)
        for key, value in setup.optimizer.state[param].items():
            if value.dim():
                setup.optimizer.state[param][key] = value.contiguous()


def _shared_memory(setup: Setup) -> None:
    setup.params[1].data = setup.params[5].data[:7]


def _lay_as(setup: Setup, make: Callable[[], Tensor]) -> None:
    """Parameter, gradient and state alike, so that nothing but their common layout is in the way."""
    param = setup.params[1]
    param.data, param.grad = make(), make()
    state = setup.optimizer.state[param]
    state.update({key: make() for key, value in state.items() if value.dim()})
    setup.table.set_targets(setup.rows, setup.centers, [param.stride() for param in setup.params])


def _gaps(setup: Setup) -> None:
    _lay_as(setup, lambda: torch.zeros(14)[::2])


def _elements_in_one_place(setup: Setup) -> None:
    _lay_as(setup, lambda: torch.zeros(1).expand(7))


@with_algorithms
@pytest.mark.parametrize(
    "change",
    [
        _sparse_grad,
        _transposed_grad,
        _no_state,
        _none_in_state,
        _half_state,
        _shorter_state,
        _other_memory_format,
        _shared_memory,
        _gaps,
        _elements_in_one_place,
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


@pytest.mark.parametrize("count", [1.0, torch.tensor(1), torch.ones(2), torch.ones(1, device="meta")])
def test_leaves_other_counts_than_torch_makes_to_it(count: float | Tensor) -> None:
    setup = Setup("adamw")
    setup.set_grads(0)
    setup.step_by_torch()
    setup.optimizer.state[setup.params[0]]["step"] = count
    assert not setup.step()


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


def test_leaves_gradients_in_one_place_to_torch_only_where_it_would_write_them() -> None:
    params, grad = [torch.ones(3), torch.ones(3)], torch.ones(3)
    params[0].grad = params[1].grad = grad
    table, plain = StepTable("sgd", params, [0, 0]), SgdHyperparameters(0.5, 0.0, 0.0, 0.0, False, False)
    assert table.step({}, [plain])
    assert not table.step({}, [plain], grad_scale=torch.tensor(2.0))
    assert all((param == 0.5).all() for param in params) and (grad == 1).all()
