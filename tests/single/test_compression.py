"""Differences in 16 bits: the scale that keeps them in float16's range, and what rounding leaves for the next round."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from grawa_hvd import Compression
from grawa_hvd.transport.local import LocalTransport, run_workers
from grawa_hvd.transport.wire import LARGEST, Wire, scale_for

SMALL = {Compression.fp16: 2.0**-11, Compression.bf16: 2.0**-8}  # half of the last bit that each type keeps


@pytest.mark.parametrize("radius", [1e-25, 1e-9, 0.1, 0.5, 1.0, 1.0 + 1e-12, 3.0, 65504.0, 1e6, 1e30])
def test_the_scale_is_a_power_of_two_that_takes_the_radius_just_below_the_largest(radius: float) -> None:
    scale = scale_for(radius)
    assert math.frexp(scale)[0] == 0.5
    assert LARGEST / 2 <= radius * scale <= LARGEST


@pytest.mark.parametrize("radius", [0.0, math.inf, math.nan])
def test_where_there_is_nothing_to_go_by_the_scale_is_one(radius: float) -> None:
    assert scale_for(radius) == 1.0


@pytest.mark.parametrize("radius", [1e-300, 1e300])
def test_scales_stay_within_the_range_of_float32(radius: float) -> None:
    assert 2.0**-100 <= scale_for(radius) <= 2.0**100


@pytest.mark.parametrize("compression", SMALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_what_arrives_and_what_is_left_add_up_to_what_was_sent(
    dtype: torch.dtype, size: int, unit: float, compression: Any
) -> None:
    def rounds(transport: LocalTransport) -> None:
        wire = Wire(transport, compression)
        generator = torch.Generator().manual_seed(0)
        residual = torch.zeros(size, dtype=dtype)
        sent, arrived = torch.zeros_like(residual), torch.zeros_like(residual)
        for _ in range(5):
            differences = torch.randn(size, generator=generator).to(dtype) * unit
            sent += differences
            sum_ = wire.sum_differences_(differences, residual, float(differences.norm()), "differences")
            assert sum_.bytes == 2 * size
            sum_.wait()
            arrived += differences
        # In the arithmetic of dtype: a rounding for each of the ten additions, of numbers up to 5 times their largest.
        allowed = 10 * torch.finfo(dtype).eps * 5 * 4 * unit
        assert float((sent - arrived - residual).abs().sum()) <= allowed * max(1, size)
        # What is left is half of the last bit that travels, or less, of this round's differences.
        assert bool((residual.abs() <= SMALL[compression] * (differences.abs() + unit * 2.0**-20)).all())

    run_workers(1, rounds)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_sum_over_workers_cannot_overflow(workers: int) -> None:
    """Workers as far as the radius, all along one element, with weights that sum to 1: the most there can be."""

    def total(transport: LocalTransport) -> Tensor:
        differences = torch.tensor([1.0e6, 0.0]) / workers
        sum_ = Wire(transport, Compression.fp16).sum_differences_(differences, torch.zeros(2), 1.0e6, "differences")
        sum_.wait()
        return differences

    # A rounding to 11 bits of each worker's part, and of each partial sum.
    for found in run_workers(workers, total):
        torch.testing.assert_close(found, torch.tensor([1.0e6, 0.0]), rtol=2 * workers * 2.0**-11, atol=0)


def test_horovods_methods_are_there_for_its_own_optimizer() -> None:
    tensor, integers = torch.randn(5), torch.arange(5)
    for compression, dtype in ((Compression.fp16, torch.float16), (Compression.bf16, torch.bfloat16)):
        wire, context = compression.compress(tensor)
        assert wire.dtype == dtype
        assert torch.equal(compression.decompress(wire, context), tensor.to(dtype).float())
        assert torch.equal(compression.decompress(*compression.compress(integers)), integers)
    unchanged, context = Compression.none.compress(tensor)
    assert unchanged is tensor
    assert Compression.none.decompress(unchanged, context) is tensor
