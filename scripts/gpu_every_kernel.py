"""Calls every kernel over sizes and addresses that are awkward for it: what compute-sanitizer is to watch.

Whether the results are right, the tests say; here they are only read, so that every launch has ended.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from itertools import product
from typing import Any

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


def steppers(dtype: torch.dtype, device: str, shift: int, momentum: float) -> list[tuple[Any, Any, Any]]:
    """An optimizer of each algorithm over layers of its own, with the table and the hyperparameters of its steps."""
    found = []
    for algorithm in ("sgd", "adamw"):
        params = [torch.nn.Parameter(tensor) for tensor in layers(dtype, device, shift)]
        for param in params:
            param.grad = torch.ones_like(param)
        sgd = partial(torch.optim.SGD, params, lr=0.1, momentum=momentum)
        optimizer = sgd() if algorithm == "sgd" else torch.optim.AdamW(params, lr=0.1, eps=1e-4)
        optimizer.step()  # makes the state
        for state in optimizer.state.values():
            state.update({key: value.to(device) for key, value in state.items() if key == "step"})
        table = ops.StepTable(algorithm, params, [0] * len(params))
        sgd_values = ops.SgdHyperparameters(0.1, momentum, 0.0, 0.01, False, False)
        adamw_values = ops.AdamwHyperparameters(0.1, 0.9, 0.999, 1e-4, 0.01, False)
        found.append((optimizer, table, sgd_values if algorithm == "sgd" else adamw_values))
    return found


def call_on_steps(dtype: torch.dtype, center_dtype: torch.dtype, device: str, shift: int) -> None:
    momentum = 0.9 if shift else 0.0
    for optimizer, table, values in steppers(dtype, device, shift, momentum):
        params = optimizer.param_groups[0]["params"]
        norms = torch.zeros(len(params), device=device)
        flat = torch.zeros(sum(SIZES) + 1, dtype=center_dtype, device=device)[1:]
        strides = [param.stride() for param in params]
        scale, found_inf = torch.full((), 2.0, device=device), torch.zeros((), device=device)
        for centers in ([None] * len(params), list(flat.split(SIZES))):
            table.set_targets(range(len(params)), centers, strides)
            for amp in ({}, {"grad_scale": scale}, {"grad_scale": scale, "found_inf": found_inf}):
                if not table.step(optimizer.state, [values], 0.5, norms, **amp):
                    raise RuntimeError(f"{type(optimizer).__name__}, {dtype}: the step was left to torch")
        params[-1].grad = None
        found_inf.fill_(1.0)
        table.step(optimizer.state, [values], 0.5, norms, found_inf=found_inf)


def call_in_a_graph(device: str) -> None:
    """The table's upload, which in a graph is a kernel."""
    params = [torch.nn.Parameter(tensor) for tensor in layers(torch.float32, device, 0)]
    for param in params:
        param.grad = torch.ones_like(param)
    table, graph = ops.LayerTable(params), torch.cuda.CUDAGraph()
    table.grad_norms()
    with torch.cuda.graph(graph):
        table.grad_norms()
    graph.replay()


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
    for dtype, center_dtype, shift in product(DTYPES, DTYPES, (0, 1)):
        call_on_steps(dtype, center_dtype, device, shift)
        calls += 1
    if device == "cuda":
        # A graph cannot take memory from the driver, which it must do without torch's pool.
        if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") != "1":
            call_in_a_graph(device)
        torch.cuda.synchronize()
    print(f"Every kernel on {device}: {calls} combinations of dtypes and addresses, {len(SIZES)} sizes each.")


if __name__ == "__main__":
    main()
