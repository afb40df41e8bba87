"""LayerTable and StepTable given anything: a right result, or an error that names the argument; never a crash."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from odd_tensors import ODD, odd, one_of, tensors
from test_fuzz_ops import fuzzed
from torch import Tensor

from grawa_hvd import _C, ops
from grawa_hvd.ops import reference

NUMBERS = st.sampled_from([0, 1, -1, -2, 7, 2**31, 2**63 - 1, -(2**63)])
NAMES = (
    "params", "wire_strides", "weights", "out", "base", "center", "pull", "distances", "grads", "groups", "norm_rows",
    "hyperparameters", "norms", "grad_scale", "found_inf", "algorithm", "state", "incompatible function arguments",
    "incompatible constructor arguments", "no kernels for",
    "NestedTensorImpl",  # torch's own words
)  # fmt: skip


def attempt(function: Any, *arguments: Any) -> Any:
    """The result; None where it is refused, which must be with a name."""
    try:
        return function(*arguments)
    except (RuntimeError, TypeError) as error:
        assert any(name in str(error) for name in NAMES), str(error)
        return None


def maybe_odd(draw: st.DrawFn, tensor: Tensor) -> Tensor:
    return odd(draw, tensor) if draw(st.integers(0, 3)) == 0 else tensor


@fuzzed
@given(st.data())
def test_layer_table(data: st.DataObject) -> None:
    draw = data.draw
    params = [maybe_odd(draw, draw(tensors()).detach()) for _ in range(draw(st.integers(1, 3)))]
    strides = draw(st.none() | st.lists(st.lists(NUMBERS, max_size=3), max_size=3))
    table = attempt(_C.LayerTable, params, strides)
    if table is None:
        return
    place = draw(st.integers(0, len(params) - 1))
    other = maybe_odd(draw, draw(tensors()).detach())
    with suppress(RuntimeError, TypeError):  # torch's own check of gradients
        params[place].grad = other
    norms = attempt(table.grad_norms)
    if norms is not None and params[place].grad is not None and _can_clone(other):
        torch.testing.assert_close(norms[place : place + 1], reference.layer_norms([other]), check_dtype=False,
                                   rtol=2**-20, atol=0, equal_nan=True)  # fmt: skip
    attempt(table.norms)
    size, layers = (table.numel,), (len(params),)
    flat = [maybe_odd(draw, draw(tensors(size)).contiguous().detach()) for _ in range(2)]
    rows = [maybe_odd(draw, draw(tensors(layers, [torch.float32, torch.float64])).detach()) for _ in range(3)]
    attempt(table.pack, rows[0], flat[0], one_of(draw, None, *flat))
    attempt(table.blend_, flat[1], rows[1], one_of(draw, None, *rows, params[place]))


@fuzzed
@given(st.data())
def test_step_table(data: st.DataObject) -> None:
    draw = data.draw
    params = [maybe_odd(draw, draw(tensors()).detach()) for _ in range(draw(st.integers(1, 3)))]
    groups = [draw(st.just(0) | NUMBERS) for _ in params]
    algorithm = draw(st.sampled_from(["sgd", "adamw", "lion"]))
    table = attempt(_C.StepTable, algorithm, params, groups)
    if table is None:
        return
    for param in filter(_can_clone, params):
        try:
            param.grad = maybe_odd(draw, param.clone())
        except (RuntimeError, TypeError):
            continue
    centers = [one_of(draw, None, maybe_odd(draw, torch.zeros(param.numel() % 2**20))) for param in params]
    strides = [
        list(param.stride()) if param.layout == torch.strided and not param.is_nested else [] for param in params
    ]
    rows = [draw(st.just(index) | NUMBERS) for index in range(len(params))]
    attempt(table.set_targets, rows, centers, strides)
    state = {param: _state(draw, param) for param in params if _can_clone(param)}
    numbers = (0.1, draw(st.sampled_from([0.0, 0.9, "x", None])), 0.9, 0.1, False, False)
    norms = maybe_odd(draw, torch.zeros(draw(st.integers(0, 4))))
    number = maybe_odd(draw, torch.ones(()))
    attempt(table.step, state, [numbers] * draw(st.integers(0, 2)), draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            one_of(draw, None, norms), one_of(draw, None, number), None)  # fmt: skip


def _state(draw: st.DrawFn, param: Tensor) -> dict[str, Tensor]:
    names = ("momentum_buffer", "exp_avg", "exp_avg_sq")
    return {"step": torch.ones(()), **{name: maybe_odd(draw, param.detach().clone()) for name in names}}


def _can_clone(param: Tensor) -> bool:
    return param.layout == torch.strided and 0 < param.numel() < 2**20 and param.untyped_storage().nbytes() > 0


PLAIN = (0.1, 0.0, 0.0, 0.0, False, False)


@pytest.mark.parametrize("number", [2**31, 2**63 - 1])
def test_numbers_of_groups_and_rows_have_a_limit(number: int) -> None:
    param = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"groups\[0\] is \d+: it must be from 0 to 2147483647"):
        _C.StepTable("sgd", [param], [number])
    with pytest.raises(RuntimeError, match=r"norm_rows\[0\] is \d+: it must be from -1 to 2147483647"):
        _C.StepTable("sgd", [param], [0]).set_targets([number], [None], [[1]])


@pytest.mark.parametrize("strides", [[], [[1]], [[0, 1]], [[8, 1]], [[1, 1]], [[2**40, 1]]])
def test_wire_strides_are_those_of_a_dense_tensor(strides: list[list[int]]) -> None:
    with pytest.raises(RuntimeError, match="wire_strides"):
        _C.LayerTable([torch.ones(3, 4)], strides)
    assert _C.LayerTable([torch.ones(3, 4)], [[1, 3]]).numel == 12


def test_a_center_that_was_cut_short_is_not_read_beyond_its_end() -> None:
    param, center = torch.ones(30000), torch.zeros(30000)
    table = _C.StepTable("sgd", [param], [0])
    table.set_targets([-1], [center], [[1]])
    center.data = torch.zeros(1)
    assert not table.step({}, [PLAIN], 0.5)
    center.data = torch.zeros(30000)
    assert table.step({}, [PLAIN], 0.5) and (param == 0.5).all()
    ODD["freed"](center)
    assert not table.step({}, [PLAIN], 0.5)


def test_memory_that_was_freed_is_no_zero() -> None:
    tensor = ODD["freed"](torch.ones(30000))
    with pytest.raises(RuntimeError, match=r"tensors\[0\] has no memory for its 30000 elements"):
        ops.layer_norms([tensor])
