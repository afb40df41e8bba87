import math

import pytest
import torch
from devices import DEVICES, DTYPES, SIZES, name, values, wire
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
with_out_dtypes = pytest.mark.parametrize("out_dtype", DTYPES, ids=name)


def exact(tensors: list[Tensor], weights: Tensor, base: Tensor | None = None) -> Tensor:
    sizes = [tensor.numel() for tensor in tensors]
    bases = [0.0] * len(tensors) if base is None else base.double().split(sizes)
    return torch.cat([w * (wire(t).double() - b) for t, w, b in zip(tensors, weights.double(), bases, strict=True)])


def assert_packed(out: Tensor, want: Tensor, *dtypes: torch.dtype) -> None:
    """Three roundings in the arithmetic type (weight, difference, product), one to the dtype of the buffer."""
    arithmetic = torch.finfo(torch.float64 if torch.float64 in (*dtypes, out.dtype) else torch.float32)
    info = torch.finfo(out.dtype)
    error = (out.double() - want).abs()
    # Differences of operands of size up to 8 round by their own size, not by that of the result.
    assert (error <= want.abs() * info.eps + 32 * arithmetic.eps + info.smallest_normal * info.eps).all()


@on_devices
@with_dtypes
@with_out_dtypes
@pytest.mark.parametrize("with_base", [False, True])
def test_is_the_weighted_tensors_one_after_the_other(
    device: str, dtype: torch.dtype, out_dtype: torch.dtype, with_base: bool
) -> None:
    tensors = [values(size, dtype, device, seed=1) for size in SIZES]
    weights = torch.linspace(-0.3, 1.7, len(SIZES), dtype=torch.float64, device=device)
    out = torch.full((sum(SIZES),), math.nan, dtype=out_dtype, device=device)
    base = values(sum(SIZES), out_dtype, device, seed=2) if with_base else None
    ops.pack(tensors, weights, out, base)
    assert_packed(out, exact(tensors, weights, base), dtype)


@on_devices
def test_agrees_with_the_reference_on_views_of_mixed_dtypes(device: str) -> None:
    image = values(2 * 3 * 5 * 5, torch.float32, device).view(2, 3, 5, 5)
    flat = values(3000, torch.bfloat16, device)
    tensors = [
        image.to(memory_format=torch.channels_last),
        image.permute(3, 1, 0, 2),
        flat[1:],
        flat.view(50, 60)[:, 1:50:2],
        flat[:3].expand(4, 3),
        values(17, torch.float64, device),
        flat[2],
    ]
    weights = torch.linspace(0.1, 0.9, len(tensors), device=device)
    size = sum(tensor.numel() for tensor in tensors)
    out, expected = torch.empty(size, device=device), torch.empty(size, device=device)
    ops.pack(tensors, weights, out)
    reference.pack(tensors, weights, expected)
    assert_packed(out, exact(tensors, weights))
    assert_packed(expected, exact(tensors, weights))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-7)


@on_devices
@with_dtypes
def test_weight_zero_gives_exactly_zero_over_nan_and_inf(device: str, dtype: torch.dtype) -> None:
    diverged = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=dtype, device=device)
    for base in (None, diverged.flip(0).repeat(2).contiguous()):
        for function in (ops.pack, reference.pack):
            out = torch.full((8,), 7, dtype=dtype, device=device)
            function([diverged, diverged], torch.tensor([0.0, -0.0], device=device), out, base)
            assert (out == 0).all()


@on_devices
@with_dtypes
def test_nan_and_inf_travel_under_any_other_weight(device: str, dtype: torch.dtype) -> None:
    out = torch.empty(3, dtype=dtype, device=device)
    tensor = torch.tensor([math.nan, math.inf, 1.0], dtype=dtype, device=device)
    ops.pack([tensor], torch.tensor([0.5], device=device), out)
    assert out[0].isnan() and out[1] == math.inf and out[2] == 0.5


@on_devices
@with_dtypes
def test_weight_one_is_a_bitwise_copy(device: str, dtype: torch.dtype) -> None:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    generator = torch.Generator().manual_seed(0)
    info = torch.iinfo(integers)
    # Every kind of bit pattern: subnormal, signalling NaN, negative zero.
    bits = torch.randint(info.min, info.max, (20001,), dtype=integers, generator=generator).to(device)
    out = torch.empty(20001, dtype=dtype, device=device)
    ops.pack([bits.view(dtype)], torch.ones(1, device=device), out)
    assert torch.equal(out.view(integers), bits)


@on_devices
@with_dtypes
def test_base_may_be_the_memory_of_out(device: str, dtype: torch.dtype) -> None:
    tensors = [values(size, dtype, device) for size in (5, 40001)]
    weights = torch.tensor([0.25, 1.0], device=device)
    base = values(40006, dtype, device, seed=3)
    separate = torch.empty_like(base)
    ops.pack(tensors, weights, separate, base)
    ops.pack(tensors, weights, base, base)
    assert torch.equal(base, separate)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=20),
    st.sampled_from(DTYPES),
    st.sampled_from(DTYPES),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_any_list_of_small_layers(sizes: list[int], dtype: torch.dtype, out_dtype: torch.dtype, shift: int) -> None:
    tensors = [values(size + shift, dtype, seed=i)[shift:] for i, size in enumerate(sizes)]
    weights = torch.rand(len(sizes))
    out = torch.empty(sum(sizes) + shift, dtype=out_dtype)[shift:]
    ops.pack(tensors, weights, out)
    assert_packed(out, exact(tensors, weights), dtype)


def test_writes_only_out_and_tells_autograd() -> None:
    tensors = [values(5, torch.float32).requires_grad_()]
    memory = torch.full((9,), 3.0)
    out, version = memory[2:7], memory._version
    ops.pack(tensors, torch.ones(1), out)
    assert memory[:2].tolist() == [3, 3] and memory[7:].tolist() == [3, 3]
    assert memory._version == version + 1 and tensors[0]._version == 0 and not out.requires_grad


def test_is_bitwise_the_same_for_any_number_of_threads() -> None:
    tensors, weights = [values(size, torch.float32) for size in (100, 300001)], torch.tensor([0.3, 0.7])
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(torch.empty(300101))
            ops.pack(tensors, weights, results[-1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_empty_list_writes_nothing() -> None:
    ops.pack([], torch.empty(0), torch.empty(0))


def test_passes_opcheck() -> None:
    for requires_grad in (False, True):
        tensors = [values(size, torch.float32).requires_grad_(requires_grad) for size in (3, 0, 20)]
        arguments = (tensors, torch.rand(3), torch.empty(23))
        torch.library.opcheck(torch.ops.grawa.pack, arguments)
        torch.library.opcheck(torch.ops.grawa.pack, (*arguments, torch.rand(23)))


TENSORS = [torch.ones(2), torch.ones(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TENSORS, torch.ones(3), torch.ones(5)), r"weights has shape \[3\]: \[2\] is needed"),
        ((TENSORS, torch.ones(2, dtype=torch.int64), torch.ones(5)), "weights has dtype Long: float32 and float64"),
        ((TENSORS, torch.ones(2), torch.ones(4)), r"out has shape \[4\]: \[5\] is needed"),
        ((TENSORS, torch.ones(2), torch.ones(10)[::2]), "out must be contiguous"),
        ((TENSORS, torch.ones(2), torch.ones(5, dtype=torch.int8)), "out has dtype Char"),
        ((TENSORS, torch.ones(2), torch.ones(5), torch.ones(6)), r"base has shape \[6\]"),
        ((TENSORS, torch.ones(2), torch.ones(5), torch.ones(5).double()), "base has dtype Double: that of out, Float"),
        (([*TENSORS, torch.ones(1).int()], torch.ones(3), torch.ones(6)), r"tensors\[2\] has dtype Int"),
        (([torch.eye(2).to_sparse()], torch.ones(1), torch.ones(4)), r"tensors\[0\] has layout Sparse"),
    ],
)
def test_error_names_the_argument(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.pack(*arguments)  # type: ignore[arg-type]


def test_out_must_not_share_memory_with_a_tensor() -> None:
    memory = torch.ones(9)
    with pytest.raises(RuntimeError, match=r"out shares memory with tensors\[1\]"):
        ops.pack([torch.ones(2), memory[4:7]], torch.ones(2), memory[:5])
    with pytest.raises(RuntimeError, match="base shares part of its memory with out"):
        ops.pack([torch.ones(4)], torch.ones(1), memory[:4], memory[1:5])
