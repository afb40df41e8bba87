import math

import pytest
import torch
from devices import DEVICES, DTYPES, SIZES, name, values, wire
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)
with_center_dtypes = pytest.mark.parametrize("center_dtype", DTYPES, ids=name)


def exact(tensors: list[Tensor], center: Tensor, pull: Tensor) -> list[Tensor]:
    old = [wire(tensor).double() for tensor in tensors]
    centers = center.double().split([tensor.numel() for tensor in tensors])
    return [x + p * (c - x) for x, c, p in zip(old, centers, pull.double(), strict=True)]


def assert_blended(tensors: list[Tensor], wanted: list[Tensor], arithmetic: torch.dtype) -> None:
    """Four roundings of values up to 16 in the arithmetic type, one to the dtype of the tensor."""
    for tensor, want in zip(tensors, wanted, strict=True):
        info = torch.finfo(tensor.dtype)
        bound = want.abs() * info.eps + 64 * torch.finfo(arithmetic).eps + info.smallest_normal * info.eps
        assert ((wire(tensor).double() - want).abs() <= bound).all()


def assert_distances(distances: Tensor, old: list[Tensor], center: Tensor) -> None:
    centers = center.double().split([tensor.numel() for tensor in old])
    want = [torch.linalg.vector_norm(wire(x).double() - c) for x, c in zip(old, centers, strict=True)]
    # A rounding of the differences, two of the sums of squares (four, halved by the root), one of the result.
    torch.testing.assert_close(distances.double(), torch.stack(want), rtol=4 * 2**-24, atol=0)


@on_devices
@with_dtypes
@with_center_dtypes
def test_pulls_each_tensor_by_its_own_amount(device: str, dtype: torch.dtype, center_dtype: torch.dtype) -> None:
    tensors = [values(size, dtype, device, seed=1) for size in SIZES]
    old = [tensor.clone() for tensor in tensors]
    center = values(sum(SIZES), center_dtype, device, seed=2)
    pull = torch.linspace(0, 1, len(SIZES), device=device)
    distances = torch.full((len(SIZES),), math.nan, device=device)
    wanted = exact(tensors, center, pull)
    ops.blend_(tensors, center, pull, distances)
    is_wide = torch.float64 in (dtype, center_dtype)
    # The pull itself is a float32: its exact value went into what is wanted.
    assert_blended(tensors, wanted, torch.float64 if is_wide else torch.float32)
    assert_distances(distances, old, center)


@on_devices
@pytest.mark.parametrize("function", [ops.blend_, reference.blend_])
def test_views_are_written_in_place_in_wire_order(device: str, function: object) -> None:
    image = values(2 * 3 * 5 * 5, torch.float32, device).view(2, 3, 5, 5)
    memory = values(3000, torch.bfloat16, device)
    untouched = memory.clone()
    tensors = [
        image.to(memory_format=torch.channels_last),
        image.permute(3, 1, 0, 2),
        memory[1:30],
        memory[100:].view(50, 58)[:, 1:50:2],
        values(17, torch.float64, device),
        memory[60],
    ]
    old = [tensor.clone() for tensor in tensors]
    center = values(sum(tensor.numel() for tensor in tensors), torch.float32, device, seed=5)
    pull = torch.linspace(0.1, 0.9, len(tensors), device=device)
    distances = torch.empty(len(tensors), dtype=torch.float64, device=device)
    wanted = exact(tensors, center, pull)
    function(tensors, center, pull, distances)  # type: ignore[operator]
    assert_blended(tensors, wanted, torch.float32)
    centers = center.double().split([tensor.numel() for tensor in tensors])
    want = [torch.linalg.vector_norm(wire(x).double() - c) for x, c in zip(old, centers, strict=True)]
    assert distances.tolist() == pytest.approx(torch.stack(want).tolist(), rel=3 * 2**-24)
    assert torch.equal(memory[30:60], untouched[30:60]) and memory[0] == untouched[0]
    assert torch.equal(memory[100:].view(50, 58)[:, 0:50:2], untouched[100:].view(50, 58)[:, 0:50:2])


@on_devices
@with_dtypes
@with_center_dtypes
@pytest.mark.parametrize("function", [ops.blend_, reference.blend_])
def test_pull_one_is_the_center_even_over_nan_and_inf(
    device: str, dtype: torch.dtype, center_dtype: torch.dtype, function: object
) -> None:
    tensor = values(2000, dtype, device)
    tensor[::3], tensor[1::3] = math.nan, math.inf
    center = values(2000, center_dtype, device, seed=1)
    function([tensor], center, torch.ones(1, device=device))  # type: ignore[operator]
    assert torch.equal(tensor, center.to(dtype))


@on_devices
@with_dtypes
@pytest.mark.parametrize("function", [ops.blend_, reference.blend_])
def test_pull_zero_changes_no_bit(device: str, dtype: torch.dtype, function: object) -> None:
    tensor = values(2000, dtype, device)
    tensor[::3], tensor[1::3] = math.nan, -0.0
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    before = tensor.view(integers).clone()
    center = torch.full((2000,), math.nan, device=device)
    function([tensor], center, torch.zeros(1, device=device))  # type: ignore[operator]
    assert torch.equal(tensor.view(integers), before)


@on_devices
def test_distances_of_huge_float64_do_not_overflow(device: str) -> None:
    tensor = torch.full((4,), -1e200, dtype=torch.float64, device=device)
    center = torch.full((4,), 1e200, dtype=torch.float64, device=device)
    for function in (ops.blend_, reference.blend_):
        distances = torch.empty(1, dtype=torch.float64, device=device)
        function([tensor], center, torch.zeros(1, device=device), distances)
        assert distances.item() == pytest.approx(4e200)


def test_tells_autograd_what_it_wrote_and_accepts_parameters() -> None:
    params = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(4, 6)[:, ::2])]
    distances = torch.empty(2)
    versions = [tensor._version for tensor in (*params, distances)]
    ops.blend_(params, torch.ones(15), torch.full((2,), 0.5), distances)
    assert all(new._version > old for new, old in zip((*params, distances), versions, strict=True))
    assert all((param == 0.5).all() and param.requires_grad and param.is_leaf for param in params)
    saved = torch.nn.Parameter(torch.ones(3))
    loss = (saved * saved).sum()
    ops.blend_([saved], torch.zeros(3), torch.full((1,), 0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_is_bitwise_the_same_for_any_number_of_threads() -> None:
    center, before, results = values(300101, torch.float32), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            tensors = [values(size, torch.bfloat16, seed=3) for size in (100, 300001)]
            distances = torch.empty(2, dtype=torch.float64)
            ops.blend_(tensors, center, torch.tensor([0.3, 0.6]), distances)
            results.append([*tensors, distances])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result, strict=True))


def test_passes_opcheck() -> None:
    for requires_grad in (False, True):
        tensors = [values(size, torch.float32).requires_grad_(requires_grad) for size in (3, 0, 20)]
        arguments = (tensors, torch.rand(23), torch.rand(3))
        torch.library.opcheck(torch.ops.grawa.blend_, arguments)
        torch.library.opcheck(torch.ops.grawa.blend_, (*arguments, torch.empty(3)))


TENSORS = [torch.ones(2), torch.ones(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TENSORS, torch.ones(6), torch.ones(2)), r"center has shape \[6\]: \[5\] is needed"),
        ((TENSORS, torch.ones(5), torch.ones(1)), r"pull has shape \[1\]: \[2\] is needed"),
        ((TENSORS, torch.ones(5).int(), torch.ones(2)), "center has dtype Int"),
        ((TENSORS, torch.ones(5), torch.ones(2).half()), "pull has dtype Half"),
        ((TENSORS, torch.ones(5), torch.ones(2), torch.ones(3)), r"distances has shape \[3\]"),
        (([torch.ones(2).expand(3, 2)], torch.ones(6), torch.ones(1)), r"tensors\[0\] has elements that share memory"),
    ],
)
def test_error_names_the_argument(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.blend_(*arguments)  # type: ignore[arg-type]


def test_center_must_not_share_memory_with_a_tensor() -> None:
    memory = torch.ones(9)
    with pytest.raises(RuntimeError, match=r"center shares memory with tensors\[0\]"):
        ops.blend_([memory[4:8]], memory[1:5], torch.ones(1))


@on_devices
@pytest.mark.parametrize("function", [ops.update_estimates_, reference.update_estimates_])
def test_estimates_follow_the_norms_and_skip_missing_gradients(device: str, function: object) -> None:
    sums, counts = torch.zeros(2, 4, dtype=torch.float64, device=device).unbind()
    for norm in (2.0, 4.0):
        norms = torch.tensor([norm, -1.0, math.nan, 0.0], device=device)
        function(sums, counts, norms, 0.85)  # type: ignore[operator]
    first = 0.15 * 2.0
    assert sums[0].item() == pytest.approx(0.85 * first + 0.15 * 4.0, rel=1e-15)
    assert counts.tolist() == pytest.approx([1 - 0.85**2, 0, 1 - 0.85**2, 1 - 0.85**2], rel=1e-15)
    assert sums[1] == 0 and sums[2].isnan() and sums[3] == 0


def test_estimates_check_their_arguments_and_tell_autograd() -> None:
    sums, counts, norms = torch.zeros(3).double(), torch.zeros(3).double(), torch.rand(3)
    before = sums._version, counts._version
    ops.update_estimates_(sums, counts, norms, 0.5)
    assert (sums._version, counts._version) == (before[0] + 1, before[1] + 1)
    torch.library.opcheck(torch.ops.grawa.update_estimates_, (sums, counts, norms, 0.5))
    with pytest.raises(RuntimeError, match=r"decay is 1\.5: it must be in \[0, 1\)"):
        ops.update_estimates_(sums, counts, norms, 1.5)
    with pytest.raises(RuntimeError, match="counts has dtype Float: float64 is needed"):
        ops.update_estimates_(sums, counts.float(), norms, 0.5)
    with pytest.raises(RuntimeError, match=r"sums has shape \[2\]: \[3\] is needed"):
        ops.update_estimates_(sums[:2], counts, norms, 0.5)
