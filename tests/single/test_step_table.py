"""StepTable beside torch's own optimizers: the same steps, and the same state."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from devices import DEVICES, PLACES, name
from optimizer_steps import SHAPES, Setup, assert_same

from grawa_hvd import ops
from grawa_hvd.ops import SgdHyperparameters, StepTable

on_devices = pytest.mark.parametrize("device", DEVICES)
with_algorithms = pytest.mark.parametrize("algorithm", ["sgd", "adamw"])
PLAIN = SgdHyperparameters(0.1, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False)


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


def test_sgd_without_momentum_needs_no_state() -> None:
    setup = Setup("sgd")
    setup.set_grads(0)
    for group in setup.optimizer.param_groups:
        group["momentum"], group["nesterov"] = 0.0, False
    assert setup.step()
    assert not setup.optimizer.state


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


@on_devices
def test_each_param_group_has_its_own_settings(device: str) -> None:
    """Though there are more than a launch takes."""
    params = [torch.ones(3, device=device) for _ in range(100)]
    for param in params:
        param.grad = torch.ones_like(param)
    table, rates = StepTable("sgd", params, range(len(params))), torch.arange(100) / 128
    assert table.step({}, [PLAIN._replace(lr=rate) for rate in rates.tolist()])
    assert torch.equal(torch.stack(params).cpu(), (1 - rates)[:, None].expand(-1, 3))


@with_algorithms
def test_tells_autograd_what_it_wrote(algorithm: str) -> None:
    setup = Setup(algorithm)
    setup.set_grads(0)
    setup.step_by_torch()
    setup.set_grads(1, missing=(1,))
    grad, state = setup.params[0].grad, setup.optimizer.state[setup.params[0]]
    assert grad is not None
    tensors = (value for value in state.values() if value is not None)
    written = [setup.params[0], *tensors, setup.norms]
    pulled = setup.params[1]._version
    versions = [tensor._version for tensor in written]
    assert setup.step()
    assert all(tensor._version > version for tensor, version in zip(written, versions, strict=True))
    assert setup.params[1]._version == pulled  # without a gradient, and averaging is not told
    assert grad._version == 1  # its own copy_
    assert setup.step(grad_scale=torch.tensor(2.0))
    assert grad._version == 2


def test_error_names_the_argument() -> None:
    params = [torch.zeros(3), torch.zeros(2)]
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
        table.step({}, [PLAIN])
    with pytest.raises(RuntimeError, match=r"hyperparameters\[1\] must be a tuple of 6"):
        table.step({}, [PLAIN, (1.0,)])  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"pull is 2: it must be in \[0, 1\]"):
        table.step({}, [PLAIN, PLAIN], pull=2.0)
    with pytest.raises(RuntimeError, match=r"norms has shape \[2\]"):
        table.step({}, [PLAIN, PLAIN], norms=torch.zeros(2))
    with pytest.raises(RuntimeError, match="grad_scale has dtype Half"):
        table.step({}, [PLAIN, PLAIN], grad_scale=torch.ones(()).half())
    with pytest.raises(RuntimeError, match=r"found_inf has shape \[2\]"):
        table.step({}, [PLAIN, PLAIN], found_inf=torch.zeros(2))
