"""Differences in 16 bits: the scale that keeps them in float16's range, and what rounding leaves for the next round."""

from __future__ import annotations

import math

import horovod.torch as hvd
import pytest
import torch

from grawa_hvd import Compression
from grawa_hvd.compression import LARGEST, HalfDifferences, scale_for


@pytest.mark.parametrize("reach", [1e-25, 1e-9, 0.1, 0.5, 1.0, 1.0 + 1e-12, 3.0, 65504.0, 1e6, 1e30])
def test_the_scale_is_a_power_of_two_that_takes_the_reach_just_below_the_largest(reach: float) -> None:
    scale = scale_for(reach)
    assert math.frexp(scale)[0] == 0.5
    assert LARGEST / 2 <= reach * scale <= LARGEST


@pytest.mark.parametrize("reach", [0.0, math.inf, math.nan])
def test_where_there_is_nothing_to_go_by_the_scale_is_one(reach: float) -> None:
    assert scale_for(reach) == 1.0


@pytest.mark.parametrize("reach", [1e-300, 1e300])
def test_scales_stay_within_the_range_of_float32(reach: float) -> None:
    assert 2.0**-100 <= scale_for(reach) <= 2.0**100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [0, 1, 7, 1000])
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e6])
def test_what_arrives_and_what_is_left_add_up_to_what_was_sent(dtype: torch.dtype, size: int, unit: float) -> None:
    torch.manual_seed(0)
    residual = torch.zeros(size, dtype=dtype)
    sent, arrived = torch.zeros_like(residual), torch.zeros_like(residual)
    for _ in range(5):
        differences = torch.randn(size).to(dtype) * unit
        sent += differences
        halves = HalfDifferences(differences, residual, float(differences.norm()))
        assert halves.wire.dtype == torch.float16
        halves.receive()
        arrived += halves.differences
    # In the arithmetic of dtype: a rounding for each of the ten additions, of numbers up to 5 times their largest.
    allowed = 10 * torch.finfo(dtype).eps * 5 * 4 * unit
    assert float((sent - arrived - residual).abs().sum()) <= allowed * max(1, size)
    # A float16 keeps 11 bits: what is left is half of the last one, or less, of this round's differences.
    assert bool((residual.abs() <= 2.0**-11 * (halves.differences.abs() + unit * 2.0**-20)).all())


def test_a_sum_over_workers_cannot_overflow() -> None:
    """One worker as far as the reach with all the weight, along one element: the most that a sum can come to."""
    differences = torch.tensor([1.0e6, 0.0])
    halves = HalfDifferences(differences, torch.zeros(2), 1.0e6)
    assert float(halves.wire.abs().max()) <= LARGEST


def test_horovods_methods_are_there_for_its_own_optimizer() -> None:
    tensor, integers = torch.randn(5), torch.arange(5)
    wire, context = Compression.fp16.compress(tensor)
    assert wire.dtype == torch.float16
    assert torch.equal(Compression.fp16.decompress(wire, context), tensor.half().float())
    assert torch.equal(Compression.fp16.decompress(*Compression.fp16.compress(integers)), integers)
    unchanged, context = Compression.none.compress(tensor)
    assert unchanged is tensor
    assert Compression.none.decompress(unchanged, context) is tensor
    assert torch.equal(hvd.Compression.fp16.compress(tensor)[0], wire)
