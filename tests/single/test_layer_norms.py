import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from devices import DEVICES, DTYPES, SIZES, name, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def exact_norm(tensor: Tensor) -> float:
    return math.sqrt(math.fsum(x * x for x in tensor.detach().double().flatten().tolist()))


def assert_norms(norms: Tensor, tensors: list[Tensor]) -> None:
    for tensor, got in zip(tensors, norms.tolist(), strict=True):
        # Of float64: sums of at most 2^17 squares err by less than 2^17 * 2^-53. Of narrower types: by 4 roundings of
        # float, 2^-22, which the root halves. And the rounding of the result.
        error = 1e-11 if tensor.dtype == torch.float64 else 2**-23
        rounding = 2**-24 if norms.dtype == torch.float32 else 0
        assert got == pytest.approx(exact_norm(tensor), rel=error + rounding, abs=0)


@on_devices
@with_dtypes
@pytest.mark.parametrize("size", SIZES)
def test_is_the_frobenius_norm(device: str, dtype: torch.dtype, size: int) -> None:
    tensor = values(size, dtype, device)
    norms = ops.layer_norms([tensor])
    assert norms.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert norms.shape == (1,) and norms.device == tensor.device
    assert_norms(norms, [tensor])


@on_devices
def test_mixed_dtypes_in_one_list_are_float64_if_any_is(device: str) -> None:
    tensors = [values(size, dtype, device) for size, dtype in zip([5, 40000, 0, 1], DTYPES, strict=True)]
    assert ops.layer_norms(tensors).dtype == torch.float64
    assert ops.layer_norms(tensors[:3]).dtype == torch.float32
    assert_norms(ops.layer_norms(tensors), tensors)


@on_devices
@with_dtypes
def test_agrees_with_the_reference_on_views(device: str, dtype: torch.dtype) -> None:
    flat = values(20001, dtype, device)
    image = values(2 * 3 * 8 * 8, dtype, device).view(2, 3, 8, 8)
    tensors = [
        flat[1:],  # not aligned to a vector register
        flat[::3],
        flat[:20000].view(100, 200)[:, 3:50],
        flat[:20000].view(100, 200).t(),
        flat[:4].expand(7, 4),
        image.to(memory_format=torch.channels_last),
        flat[5],
    ]
    assert_norms(ops.layer_norms(tensors), tensors)
    assert_norms(reference.layer_norms(tensors), tensors)


@on_devices
def test_sums_of_more_chunks_than_a_block_adds_at_once(device: str) -> None:
    """On a GPU 3174 chunks, of which 256 threads take up to 12 each in one go."""
    tensor = torch.full((13_000_000,), 3.0, dtype=torch.float64, device=device)
    tensor[-1] = 4e4
    for _ in range(2):  # the second finds nothing of the first
        norm = ops.layer_norms([tensor]).item()
        assert norm == pytest.approx(math.sqrt(9 * 12_999_999 + 16e8), rel=1e-11, abs=0)


@on_devices
@pytest.mark.parametrize(
    ("dtype", "elements", "norm"),
    [
        (torch.float32, [1e30] * 4, 2e30),
        (torch.float32, [1e-30] * 4, 2e-30),
        (torch.bfloat16, [33024.0] * 4, 66048.0),
        (torch.float16, [60000.0] * 4, 120000.0),
        (torch.float64, [1e200] * 4, 2e200),
        (torch.float64, [1e-200] * 4, 2e-200),
        (torch.float64, [1e200, 1e-200, 1.0], 1e200),
        (torch.float64, [5e-324] * 4, 1e-323),
    ],
)
def test_squares_outside_the_range_do_not_matter(
    device: str, dtype: torch.dtype, elements: list[float], norm: float
) -> None:
    tensor = torch.tensor(elements, dtype=dtype, device=device)
    for function in (ops.layer_norms, reference.layer_norms):
        assert function([tensor]).item() == pytest.approx(norm, rel=1e-7, abs=0)


# The ends of the range, where squares under- and overflow in float32, where they lose accuracy, and between.
MAGNITUDES = [
    2.0**e for e in (-149, -127, -100, -75, -63, -61, -50, -49, -48, -20, 0, 30, 58, 60, 61, 62, 63, 64, 84, 119)
]


@pytest.fixture(params=["denormals", "flushed"])
def denormals(request: pytest.FixtureRequest) -> Iterator[bool]:
    flushed = request.param == "flushed" and torch.set_flush_denormal(True)
    if request.param == "flushed" and not flushed:
        pytest.skip("this processor does not flush")
    yield not flushed
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=name)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_any_magnitude_is_as_exact(dtype: torch.dtype, magnitude: float, denormals: bool) -> None:
    smallest = 2.0**-133 if denormals and dtype == torch.bfloat16 else 2.0**-149 if denormals else 2.0**-120
    if dtype == torch.float16:
        smallest = 2.0**-24
    if magnitude < smallest or magnitude > torch.finfo(dtype).max / 8:
        pytest.skip("not a number of this type")
    wide = torch.empty(0, dtype=torch.float64)  # so that the norms are not rounded to float
    tensors = [(values(size, torch.float64).clamp(-4, 4) * magnitude).to(dtype) for size in (5, 128, 1025, 16385)]
    mixed = tensors[-1].clone()
    mixed[::2] = 1.0
    assert_norms(ops.layer_norms([*tensors, mixed, wide]), [*tensors, mixed, wide])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=name)
def test_one_value_beyond_the_range_of_float_squares(dtype: torch.dtype) -> None:
    for place in (0, 127, 128, 1024, 16383, 16384, 16400):
        tensor = values(16401, dtype)
        tensor[place] = 1e25
        assert ops.layer_norms([tensor]).item() == pytest.approx(1e25, rel=2**-8 if dtype == torch.bfloat16 else 2**-22)


@on_devices
def test_huge_and_tiny_chunks_of_one_layer_add_up(device: str) -> None:
    tensor = torch.full((40000,), 1e-200, dtype=torch.float64, device=device)
    assert ops.layer_norms([tensor]).item() == pytest.approx(2e-198, rel=1e-12)
    tensor[39999] = 3e180
    assert ops.layer_norms([tensor]).item() == pytest.approx(3e180, rel=1e-12)


@on_devices
@with_dtypes
@pytest.mark.parametrize("size", [1, 3, 40000])
def test_inf_and_nan_are_passed_on(device: str, dtype: torch.dtype, size: int) -> None:
    infinite, undefined = values(size, dtype, device), values(size, dtype, device)
    infinite[-1], undefined[-1] = -math.inf, math.nan
    norms = ops.layer_norms([infinite, undefined, values(size, dtype, device)])
    assert norms[0] == math.inf and norms[1].isnan() and norms[2].isfinite()
    undefined[0] = math.inf
    if size > 1:
        assert ops.layer_norms([undefined]).isnan()


@on_devices
def test_zero_and_empty_tensors_have_norm_zero(device: str) -> None:
    tensors = [torch.zeros(40000, dtype=dtype, device=device) for dtype in DTYPES]
    assert (ops.layer_norms([*tensors, torch.empty(0, 3, device=device)]) == 0).all()


def test_empty_list_gives_no_norms() -> None:
    norms = ops.layer_norms([])
    assert norms.shape == (0,) and norms.dtype == torch.float32


@with_dtypes
def test_sparse_gradient_has_the_norm_of_its_added_entries(dtype: torch.dtype) -> None:
    indices = torch.tensor([[0, 2, 0, 4]])
    entries = torch.tensor([[3.0, 1.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=dtype)
    sparse = torch.sparse_coo_tensor(indices, entries, (5, 2), check_invariants=True)
    dense = values(3, dtype)
    assert_norms(ops.layer_norms([dense, sparse]), [dense, sparse.to_dense()])


@given(st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_float64_has_a_norm_without_overflow(elements: list[float]) -> None:
    got = ops.layer_norms([torch.tensor(elements, dtype=torch.float64)]).item()
    assert got == pytest.approx(math.hypot(*elements), rel=1e-14, abs=0)


def test_is_bitwise_the_same_for_any_number_of_threads() -> None:
    tensors = [values(size, dtype) for dtype in DTYPES for size in (100, 50000, 300001)]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(ops.layer_norms(tensors))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_passes_opcheck() -> None:
    for requires_grad in (False, True):
        tensors = [values(size, torch.float32).requires_grad_(requires_grad) for size in (3, 0, 20000)]
        torch.library.opcheck(torch.ops.grawa.layer_norms, (tensors,))
    assert not ops.layer_norms(tensors).requires_grad


def test_works_inside_compile() -> None:
    tensors = [values(5, torch.float32), values(6, torch.float32)]
    compiled = torch.compile(lambda a, b: ops.layer_norms([a, b]) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*tensors), ops.layer_norms(tensors) * 2)


def test_error_names_the_tensor_and_what_is_allowed() -> None:
    with pytest.raises(RuntimeError, match=r"tensors\[1\] has dtype Int: float16, bfloat16, float32 and float64"):
        ops.layer_norms([torch.ones(2), torch.ones(2, dtype=torch.int32)])
    with pytest.raises(RuntimeError, match=r"tensors\[0\] has dtype"):
        ops.layer_norms([torch.ones(2, dtype=torch.complex64)])


FALLBACK = """
import warnings, torch
from grawa_hvd import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    norms = [ops.layer_norms([torch.ones(3, device="meta")]) for _ in range(3)]
assert all(norm.shape == (1,) and norm.device.type == "meta" for norm in norms)
from grawa_hvd.ops import fallback, reference
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    packed = fallback._with_one_warning("pack", reference.pack)
    for _ in range(3):
        packed([torch.ones(2)], torch.ones(1), torch.empty(2))
assert ["pack has no compiled kernel" in str(w.message) for w in caught] == [True], caught
assert torch._C._dispatch_has_kernel_for_dispatch_key("grawa::pack", "CompositeExplicitAutograd")
"""


def test_a_device_without_kernels_is_served_with_one_warning() -> None:
    subprocess.run([sys.executable, "-c", FALLBACK], check=True, timeout=200)
