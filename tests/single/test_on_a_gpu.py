"""What only a GPU can show of the kernels: graphs, streams, repetition to the bit, and layers above 2^31 elements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from devices import DEVICES, DTYPES, name, values
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.ops import AdamwHyperparameters, LayerTable, SgdHyperparameters, StepTable

pytestmark = pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
SIZES = [3, 70001, 0, 1_500_007, 1]  # of one chunk and of many
VALUES: dict[str, Any] = {
    "sgd": SgdHyperparameters(0.1, 0.9, 0.0, 0.01, False, False),
    "adamw": AdamwHyperparameters(0.1, 0.9, 0.999, 1e-4, 0.01, False),
}
with_algorithms = pytest.mark.parametrize("algorithm", list(VALUES))


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    params = [torch.nn.Parameter(values(size, dtype, "cuda", seed)) for size in SIZES]
    for param in params:
        param.grad = values(param.numel(), dtype, "cuda", seed + 1)
    return params


def flat(seed: int) -> Tensor:
    return values(sum(SIZES), torch.float32, "cuda", seed)


class Stepping:
    """Parameters with a StepTable, a center, and what torch's optimizer keeps; counts of steps are on the device."""

    def __init__(self, algorithm: str, dtype: torch.dtype = torch.float32) -> None:
        self.params, self.algorithm = parameters(dtype), algorithm
        # eps is one that float16 can hold.
        kind, options = {"sgd": (torch.optim.SGD, {"momentum": 0.9}), "adamw": (torch.optim.AdamW, {"eps": 1e-4})}[
            algorithm
        ]
        optimizer = kind(self.params, lr=0.1, **options)
        optimizer.step()
        self.state = optimizer.state
        for state in self.state.values():
            state.update({key: value.cuda() for key, value in state.items() if key == "step"})
        self.center = flat(5).to(dtype)
        self.norms = torch.zeros(len(SIZES), device="cuda", dtype=torch.promote_types(dtype, torch.float32))
        self.table = StepTable(algorithm, self.params, [0] * len(SIZES))  # type: ignore[arg-type]
        strides = [param.stride() for param in self.params]
        self.table.set_targets(range(len(SIZES)), list(self.center.split(SIZES)), strides)

    def step(self) -> None:
        assert self.table.step(self.state, [VALUES[self.algorithm]], 0.25, self.norms)

    def tensors(self) -> list[Tensor]:
        states = [value for param in self.params for value in self.state[param].values()]
        return [tensor.detach().clone() for tensor in (*self.params, *states, self.norms)]


@contextmanager
def captured() -> Iterator[torch.cuda.CUDAGraph]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        yield graph


def assert_equal(ours: list[Tensor], wanted: list[Tensor]) -> None:
    assert all(torch.equal(mine, want) for mine, want in zip(ours, wanted, strict=True))


def test_a_graph_of_a_round_is_replayed_with_what_the_tensors_then_hold() -> None:
    params, out, center = parameters(), torch.empty(sum(SIZES), device="cuda"), flat(2)
    weights, distances = torch.rand(len(SIZES), device="cuda"), torch.zeros(len(SIZES), device="cuda")
    table = LayerTable(params)
    with torch.no_grad():
        table.grad_norms()
        with captured() as graph:
            norms = table.grad_norms()
            table.pack(weights, out)
            table.blend_(center, weights, distances)
        for seed in (10, 20):
            fresh = parameters(seed=seed)
            for param, new in zip(params, fresh, strict=True):
                param.copy_(new), param.grad.copy_(new.grad)  # type: ignore[union-attr, arg-type]
            center.copy_(flat(seed)), weights.uniform_()
            wanted = torch.empty_like(out), torch.zeros_like(distances)
            wanted_norms = ops.layer_norms([new.grad for new in fresh])  # type: ignore[misc]
            ops.pack(fresh, weights, wanted[0])
            ops.blend_(fresh, center, weights, wanted[1])
            # What is called beside the graph, on other tensors, must not be in its way.
            table.norms()
            graph.replay()
            assert_equal([*params, out, distances, norms], [*fresh, *wanted, wanted_norms])


@with_algorithms
def test_a_graph_of_a_step_makes_a_step_at_each_replay(algorithm: str) -> None:
    ours, twin = Stepping(algorithm), Stepping(algorithm)
    ours.step(), twin.step()
    with captured() as graph:
        ours.step()
    for _ in range(3):
        graph.replay(), twin.step()
    assert_equal(ours.tensors(), twin.tensors())


def test_kernels_run_on_the_current_stream_and_tables_follow() -> None:
    params = parameters()
    table, side = LayerTable(params), torch.cuda.Stream()
    early = ops.layer_norms([param.grad for param in params]).clone()  # type: ignore[misc]
    assert torch.equal(table.grad_norms(), early)
    side.wait_stream(torch.cuda.current_stream())
    old = [param.grad for param in params]
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # some 50 ms, in which the other stream has long gone on
        for param in params:
            param.grad.mul_(2)  # type: ignore[union-attr]
        late = table.grad_norms().clone()
    # While that waits, the table gets other gradients on the first stream.
    for param in params:
        param.grad = torch.ones_like(param)
    ones = table.grad_norms().clone()
    torch.cuda.synchronize()
    assert torch.equal(late, 2 * early)
    assert torch.equal(ones, torch.tensor(SIZES, device="cuda").double().sqrt().float())
    assert old[0] is not None


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_results_are_the_same_to_the_bit_however_blocks_are_scheduled(dtype: torch.dtype) -> None:
    busy, matrix = torch.cuda.Stream(), torch.randn(1024, 1024, device="cuda")
    center = flat(2).to(dtype)
    results = []
    for repeat in range(12):
        with torch.cuda.stream(busy):
            for _ in range(repeat % 4):
                matrix @ matrix
        params, stepping = parameters(dtype), Stepping("adamw", dtype)
        distances = torch.zeros(len(SIZES), device="cuda", dtype=stepping.norms.dtype)
        with torch.no_grad():
            norms = ops.layer_norms([param.grad for param in params])  # type: ignore[misc]
            ops.blend_(params, center, torch.full((len(SIZES),), 0.5, device="cuda"), distances)
        stepping.step()
        results.append([norms, distances, *params, *stepping.tensors()])
    for result in results[1:]:
        assert_equal(result, results[0])
    assert torch.equal(results[0][-1], results[0][0])  # the step's norms are those of layer_norms


@with_algorithms
def test_the_host_waits_for_nothing(algorithm: str) -> None:
    params, out, center, stepping = parameters(), flat(1), flat(2), Stepping(algorithm)
    table, weights = LayerTable(params), torch.rand(len(SIZES), device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            for _ in range(2):
                table.grad_norms()
                table.pack(weights, out, base=center)
                table.blend_(center, weights)
                stepping.step()
                for param in params:
                    param.grad = param.grad.clone()  # type: ignore[union-attr]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_passes_opcheck() -> None:
    tensors = [values(size, torch.float32, "cuda") for size in (3, 0, 20000)]
    weights, buffer = torch.rand(3, device="cuda"), torch.rand(20003, device="cuda")
    torch.library.opcheck(torch.ops.grawa.layer_norms, (tensors,))
    torch.library.opcheck(torch.ops.grawa.pack, (tensors, weights, buffer))
    torch.library.opcheck(torch.ops.grawa.blend_, (tensors, buffer, weights, torch.empty(3, device="cuda")))


def test_a_layer_of_more_than_2_to_the_31_elements() -> None:
    size = 2**31 + 5  # 4 GiB; its chunks have grown, too
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free memory on the GPU")
    layer = torch.ones(size, dtype=torch.bfloat16, device="cuda")
    layer[-1] = 2
    norms = ops.layer_norms([layer])
    torch.testing.assert_close(norms, torch.tensor([(size + 3) ** 0.5], device="cuda"), rtol=2**-23, atol=0)
    out, half = torch.empty_like(layer), torch.full((1,), 0.5, device="cuda")
    ops.pack([layer], half, out)
    assert torch.equal(out, layer / 2)
    distances = torch.zeros(1, device="cuda")
    ops.blend_([layer], out, half, distances)
    assert torch.equal(layer, out * 1.5)
    torch.testing.assert_close(distances, norms / 2, rtol=2**-22, atol=0)
