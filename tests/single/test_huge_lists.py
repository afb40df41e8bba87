"""Lists of more than 2^31 elements in all: no index of a kernel is a number of 32 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from devices import DEVICES
from torch import Tensor

from grawa_hvd import ops

SIZE, COUNT = 2**26, 33
EDGES = [0, SIZE // 2 + 1, SIZE - 2]
PLAIN = ops.SgdHyperparameters(0.0, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False)


@pytest.fixture(scope="module", params=DEVICES)
def read(request: pytest.FixtureRequest) -> list[Tensor]:
    """One tensor of 128 MiB, listed again and again: what is only read may be the same memory."""
    one = torch.ones(SIZE, dtype=torch.bfloat16, device=request.param)
    one[-1] = 2.0
    assert SIZE * (COUNT - 1) == 2**31
    return [one] * COUNT


@pytest.fixture(scope="module")
def written(read: list[Tensor]) -> Tensor:
    """Of all elements, so 4 GiB; each test writes what it looks at."""
    return read[0].new_empty(SIZE * COUNT)


def numbers(read: list[Tensor]) -> Tensor:
    """1, 2, … one a tensor: exact in bfloat16."""
    return torch.arange(1.0, COUNT + 1, device=read[0].device)


def rows_at_edges(written: Tensor) -> Tensor:
    """Some elements of each tensor, and its last, [COUNT, 4]."""
    return written.view(COUNT, SIZE)[:, [*EDGES, SIZE - 1]].float().cpu()


def test_norms(read: list[Tensor]) -> None:
    wanted = torch.full((COUNT,), (SIZE - 1 + 4) ** 0.5)
    for norms in (ops.layer_norms(read), ops.LayerTable(read).norms()):
        # The sums are exact; the root rounds to float32.
        torch.testing.assert_close(norms.cpu(), wanted, rtol=2**-23, atol=0)


@pytest.mark.parametrize("by_table", [False, True])
def test_pack(read: list[Tensor], written: Tensor, by_table: bool) -> None:
    weights = numbers(read) + by_table
    if by_table:
        ops.LayerTable(read).pack(weights, written)
    else:
        ops.pack(read, weights, written)
    wanted = weights.cpu()[:, None] * torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert torch.equal(rows_at_edges(written), wanted)


def test_blend(read: list[Tensor], written: Tensor) -> None:
    ops.pack(read, numbers(read), written)
    # NumPy's zeros take no memory until they are written.
    center = torch.from_numpy(np.zeros(SIZE * COUNT, np.int16)).view(torch.bfloat16).to(written.device)
    ops.blend_(list(written.view(COUNT, SIZE)), center, torch.full((COUNT,), 0.5, device=written.device))
    wanted = numbers(read).cpu()[:, None] * torch.tensor([0.5, 0.5, 0.5, 1.0])
    assert torch.equal(rows_at_edges(written), wanted)


def test_a_local_step(read: list[Tensor], written: Tensor) -> None:
    params = list(written.fill_(1.0).view(COUNT, SIZE))
    for param, grad in zip(params, read, strict=True):
        param.grad = grad
    table = ops.StepTable("sgd", params, range(COUNT))
    table.set_targets(range(COUNT), [None] * COUNT, [(1,)] * COUNT)
    rates = numbers(read).cpu() / 64
    norms = torch.empty(COUNT, device=written.device)
    assert table.step({}, [PLAIN._replace(lr=rate) for rate in rates.tolist()], norms=norms)
    wanted = 1 - rates[:, None] * torch.tensor([1.0, 1.0, 1.0, 2.0])
    assert torch.equal(rows_at_edges(written), wanted)
    torch.testing.assert_close(norms, ops.layer_norms(read), rtol=0, atol=0)
