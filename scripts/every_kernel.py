"""Calls every kernel over sizes and addresses that are awkward for it: what compute-sanitizer is to watch.

Whether the results are right, the tests say; here they are only read, so that every launch has ended.
"""

from __future__ import annotations

import argparse
from itertools import product

import torch
from torch import Tensor

from grawa_hvd import ops

# Around a warp's word, the block and the chunk, with room for a layer of several chunks.
SIZES = [0, 1, 7, 31, 1023, 1025, 16385, 70001]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def layers(dtype: torch.dtype, device: str, shift: int) -> list[Tensor]:
    """One tensor a size; `shift` moves each off the 16-byte words that the allocator gives."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(size + shift, generator=generator) for size in SIZES]
    return [value.to(dtype).to(device)[shift:] for value in values]


def call_on_lists(dtype: torch.dtype, flat_dtype: torch.dtype, device: str, shift: int) -> None:
    tensors = layers(dtype, device, shift)
    weights = torch.linspace(0, 1, len(tensors), device=device)
    flat = torch.zeros(sum(SIZES) + shift, dtype=flat_dtype, device=device)[shift:]
    ops.layer_norms(tensors)
    ops.pack(tensors, weights, flat)
    ops.pack(tensors, weights, flat, base=torch.zeros_like(flat))
    ops.blend_(tensors, flat, weights)


def call_on_estimates(dtype: torch.dtype, device: str) -> None:
    for size in SIZES:
        sums, counts = (torch.ones(size, dtype=torch.float64, device=device) for _ in range(2))
        ops.update_estimates_(sums, counts, torch.ones(size, dtype=dtype, device=device), 0.85)


def call_on_table(dtype: torch.dtype, device: str, shift: int) -> None:
    params = [torch.nn.Parameter(tensor) for tensor in layers(dtype, device, shift)]
    for param in params:
        param.grad = torch.ones_like(param)
    table = ops.LayerTable(params)
    weights = torch.linspace(0, 1, len(params), device=device)
    flat = torch.zeros(table.numel, dtype=dtype, device=device)
    with torch.no_grad():
        table.grad_norms()
        table.pack(weights, flat)
        table.blend_(flat, weights, distances=torch.zeros_like(table.norms()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    device = parser.parse_args().device
    calls = 0
    for dtype, flat_dtype, shift in product(DTYPES, DTYPES, (0, 1)):
        call_on_lists(dtype, flat_dtype, device, shift)
        calls += 1
    for dtype, shift in product(DTYPES, (0, 1)):
        call_on_table(dtype, device, shift)
        calls += 1
    for dtype in (torch.float32, torch.float64):
        call_on_estimates(dtype, device)
        calls += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"Every kernel on {device}: {calls} combinations of dtypes and addresses, {len(SIZES)} sizes each.")


if __name__ == "__main__":
    main()
