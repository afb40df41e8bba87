"""Operators given anything: a right result, by the reference in float64, or an error that names the argument.

Under `make sanitize` also: no access to memory that is not the tensors'.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from odd_tensors import odd, one_of, tensors
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import reference

# To make a failing example smaller would take minutes.
fuzzed = settings(
    max_examples=250, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
PER_LAYER = [torch.float32, torch.float64]
# Values up to 6e4 in the arithmetic type, rounded a handful of times, then to the dtype of the result.
ROUNDINGS = 8


def attempt(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[bool, Any]:
    """Whether it was done, and the result. What it raises names an argument, or is torch's own."""
    try:
        return True, function(**arguments)
    except NotImplementedError as error:  # torch has no kernel of ours for nested tensors, and says so
        assert "NestedTensorCPU" in str(error)
        return False, None
    except (RuntimeError, TypeError) as error:
        assert any(name in str(error) for name in (*arguments, "ZeroTensors are immutable")), str(error)
        return False, None


def wide(tensor: Tensor) -> Tensor:
    """Elements in wire order, float64."""
    return reference.flat(tensor.detach().resolve_neg()).double()


def assert_right(found: Tensor, want: Tensor, *others: Tensor) -> None:
    """Up to the roundings of the arithmetic and of the result's dtype."""
    is_wide = all(tensor.dtype == torch.float64 for tensor in (found, *others))
    arithmetic = torch.finfo(torch.float64 if is_wide else torch.float32).eps
    own = torch.finfo(found.dtype)
    largest = max((float(wide(t).nan_to_num(posinf=0, neginf=0).abs().amax()) for t in (found, *others) if t.numel()),
                  default=0.0)  # fmt: skip
    torch.testing.assert_close(
        wide(found), want.to(found.dtype).double(), equal_nan=True, rtol=own.eps + ROUNDINGS * arithmetic,
        atol=ROUNDINGS * arithmetic * max(1.0, largest) + own.smallest_normal * own.eps,
    )  # fmt: skip


def all_strided(*arguments: Any) -> bool:
    """Whether the reference can be asked about them."""
    return all(
        t.layout == torch.strided
        and t.device.type == "cpu"
        and not t.is_nested
        and not t.is_quantized
        and (t.numel() == 0 or (t.numel() < 2**20 and t.untyped_storage().nbytes() > 0))
        for t in arguments
    )


def spoilt(draw: st.DrawFn, layers: list[Tensor], arguments: dict[str, Any]) -> bool:
    """Replace one argument by an odd one, or tensors by another list, in half of all examples."""
    if draw(st.booleans()):
        return False
    name = draw(st.sampled_from([*arguments]))
    if name == "tensors":
        place = draw(st.integers(0, len(layers) - 1))
        layers[place] = one_of(draw, layers[0], layers[-1], None, 3, odd(draw, layers[place]))
    elif isinstance(arguments[name], Tensor):
        other = layers[0] if draw(st.booleans()) else odd(draw, arguments[name])
        arguments[name] = one_of(draw, other, None, other)
    else:
        arguments[name] = draw(st.sampled_from([-1.0, 1.0, float("nan"), float("inf"), None, "x"]))
    return True


def checked(function: Callable[..., Any], plain: Callable[..., Any], names: Sequence[str], spoilt: bool,
            arguments: dict[str, Any]) -> None:  # fmt: skip
    """Compare what an operator writes with what the reference, in float64, writes; if not refused."""
    lists = (
        [*arguments["tensors"], *(v for v in arguments.values() if isinstance(v, Tensor))]
        if "tensors" in arguments
        else []
    )
    before = copy.copy(arguments)
    can_ask = all(isinstance(t, Tensor) for t in lists) and all_strided(*lists)
    if can_ask:
        before = {name: _widened(value) for name, value in arguments.items()}
    done, result = attempt(function, arguments)
    assert done or spoilt
    if not (done and can_ask):
        return
    want = plain(**before)
    if result is not None:
        assert_right(result, want, *lists)
    for name in names:
        mine, theirs = arguments[name], before[name]
        for one, other in zip(*((v if isinstance(v, list) else [v]) for v in (mine, theirs)), strict=True):
            if one is not None:
                assert_right(one, other, *lists)


def _widened(value: Any) -> Any:
    if isinstance(value, list):
        return [wide(tensor).clone() for tensor in value]
    return wide(value).clone() if isinstance(value, Tensor) else value


LISTS = st.lists(tensors(), min_size=1, max_size=4)


@fuzzed
@given(st.data())
def test_layer_norms(data: st.DataObject) -> None:
    layers = data.draw(LISTS)
    arguments = {"tensors": layers}
    was_spoilt = spoilt(data.draw, layers, arguments)
    checked(ops.layer_norms, reference.layer_norms, [], was_spoilt, arguments)


def size_of(layers: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in layers)


@fuzzed
@given(st.data())
def test_pack(data: st.DataObject) -> None:
    layers = data.draw(LISTS)
    size, out_dtype = (size_of(layers),), data.draw(tensors(shape=(1,))).dtype
    out = torch.full(size, 7.0, dtype=out_dtype)
    base = data.draw(st.none() | st.just(out) | tensors(shape=size, dtypes=[out_dtype]).map(Tensor.contiguous))
    arguments = {"tensors": layers, "weights": data.draw(tensors((len(layers),), PER_LAYER)), "out": out, "base": base}
    was_spoilt = spoilt(data.draw, layers, arguments)
    checked(ops.pack, reference.pack, ["out"], was_spoilt, arguments)


@fuzzed
@given(st.data())
def test_blend(data: st.DataObject) -> None:
    layers = data.draw(LISTS)
    center = data.draw(tensors(shape=(size_of(layers),))).contiguous()
    per_layer = tensors((len(layers),), PER_LAYER)
    arguments = {
        "tensors": layers,
        "center": center,
        "pull": data.draw(per_layer),
        "distances": data.draw(st.none() | per_layer),
    }
    was_spoilt = spoilt(data.draw, layers, arguments)
    checked(ops.blend_, reference.blend_, ["tensors", "distances"], was_spoilt, arguments)


@fuzzed
@given(st.data())
def test_update_estimates(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(0, 5)),)
    sums, counts = (data.draw(tensors(shape, [torch.float64])) for _ in range(2))
    arguments = {
        "sums": sums,
        "counts": counts,
        "norms": data.draw(tensors(shape, PER_LAYER)),
        "decay": data.draw(st.floats(0, 0.99)),
    }
    was_spoilt = spoilt(data.draw, [sums], arguments)
    done, _ = attempt(ops.update_estimates_, arguments)
    assert done or was_spoilt


def test_a_list_may_not_be_written_twice_in_one_place() -> None:
    memory = torch.ones(9)
    for twice in ([memory, memory[3:5]], [memory[::2], memory[::2]], [memory[:4], memory[4:], memory[8:]]):
        with pytest.raises(RuntimeError, match=r"tensors\[\d\] shares memory with tensors\[\d\]"):
            ops.blend_(twice, torch.zeros(size_of(twice)), torch.ones(len(twice)))
    ops.blend_([memory[::2], memory[1::2]], torch.zeros(9), torch.full((2,), 0.5))
    assert (memory == 0.5).all()
