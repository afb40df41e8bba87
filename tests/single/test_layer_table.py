import threading

import pytest
import torch
from devices import DEVICES, DTYPES, name, values, wire
from torch import Tensor, nn

from grawa_hvd import ops
from grawa_hvd.ops.table import LayerTable

on_devices = pytest.mark.parametrize("device", DEVICES)
with_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=name)


def parameters(device: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    shapes: list[tuple[int, ...]] = [(4, 3, 5, 5), (7,), (0, 3), (), (30001,)]
    return [nn.Parameter(values(torch.Size(shape).numel(), dtype, device).view(shape)) for shape in shapes]


def by_ops(table: LayerTable) -> LayerTable:
    """The same table as a device without the compiled one has it."""
    table._current = lambda: None  # type: ignore[method-assign]
    return table


@pytest.fixture(params=["compiled", "ops"])
def table_of(request: pytest.FixtureRequest) -> object:
    return LayerTable if request.param == "compiled" else lambda params: by_ops(LayerTable(params))


def packed(table: LayerTable, params: list[nn.Parameter]) -> Tensor:
    out = torch.empty(table.numel, dtype=params[0].dtype, device=params[0].device)
    table.pack(torch.ones(len(params), device=params[0].device), out)
    return out


@on_devices
@with_dtypes
def test_does_what_the_operators_do(device: str, dtype: torch.dtype, table_of: type[LayerTable]) -> None:
    params, others = parameters(device, dtype), parameters(device, dtype)
    table = table_of(params)
    weights = torch.linspace(0.1, 1, 5, device=device)
    out, expected = torch.empty(2, table.numel, dtype=dtype, device=device).unbind()
    table.pack(weights, out)
    ops.pack(params, weights, expected)
    assert torch.equal(out, expected)
    table.pack(weights, out, out)
    ops.pack(params, weights, expected, expected)
    assert torch.equal(out, expected)
    distances, wanted = torch.empty(2, 5, device=device).unbind()
    center = values(table.numel, torch.float32, device, seed=9)
    table.blend_(center, weights, distances)
    ops.blend_(others, center, weights, wanted)
    assert torch.equal(distances, wanted)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    assert torch.equal(table.norms(), ops.layer_norms(params))


@on_devices
def test_gradient_norms_of_new_missing_and_sparse_gradients(device: str, table_of: type[LayerTable]) -> None:
    params = parameters(device)
    table = table_of(params)
    assert table.grad_norms().tolist() == [-1] * 5
    params[0].grad = torch.full_like(params[0], 2.0)
    params[2].grad = torch.zeros_like(params[2])
    entries = torch.tensor([3.0, 1.0, 4.0], device=device)
    params[1].grad = torch.sparse_coo_tensor([[1, 1, 3]], entries, (7,), check_invariants=True)
    assert table.grad_norms().tolist() == pytest.approx([2 * 300**0.5, 32**0.5, 0, -1, -1])
    params[0].grad = torch.full_like(params[0], 3.0).to(memory_format=torch.channels_last)
    params[1].grad = None
    params[4].grad = torch.ones(60002, device=device)[::2]
    assert table.grad_norms().tolist() == pytest.approx([3 * 300**0.5, -1, 0, -1, 30001**0.5])
    params[0].grad.zero_()
    assert table.grad_norms()[0] == 0


@on_devices
def test_norm_tensor_is_float64_only_for_float64(device: str, table_of: type[LayerTable]) -> None:
    assert table_of(parameters(device, torch.bfloat16)).grad_norms().dtype == torch.float32
    assert table_of(parameters(device, torch.float64)).grad_norms().dtype == torch.float64
    assert table_of(parameters(device, torch.float64)).norms().dtype == torch.float64


@on_devices
def test_gradient_norms_are_one_tensor_and_norms_a_new_one(device: str, table_of: type[LayerTable]) -> None:
    params = parameters(device)
    table = table_of(params)
    first = table.grad_norms()
    version = first._version
    for param in params:
        param.grad = torch.ones_like(param)
    second = table.grad_norms()
    assert second is first and second.data_ptr() == first.data_ptr() and first[1].item() == pytest.approx(7**0.5)
    assert first._version > version
    assert table.norms().data_ptr() != table.norms().clone().data_ptr()


@on_devices
def test_first_call_may_be_in_inference_mode(device: str, table_of: type[LayerTable]) -> None:
    table = table_of(parameters(device))
    with torch.inference_mode():
        table.grad_norms()
    assert not table.grad_norms().is_inference()


@on_devices
def test_notices_swapped_storage(device: str, table_of: type[LayerTable]) -> None:
    params = parameters(device)
    table = table_of(params)
    params[1].data = torch.full((7,), 5.0, device=device)
    params[4].data = torch.full((30001,), 2.0, device=device)
    assert torch.equal(packed(table, params), torch.cat([wire(param) for param in params]).detach())
    assert table.norms()[1].item() == pytest.approx(175**0.5)
    old = params[1].data
    params[1].data = torch.zeros(7, device=device)
    table.blend_(torch.ones(table.numel, device=device), torch.full((5,), 0.5, device=device))
    assert (params[1] == 0.5).all() and (old == 5).all()


@on_devices
@pytest.mark.parametrize("moved", ["channels_last", "gaps", "permuted"])
def test_order_on_the_wire_outlives_a_change_of_memory_format(
    device: str, moved: str, table_of: type[LayerTable]
) -> None:
    params = parameters(device)
    table = table_of(params)
    before = packed(table, params)
    data = params[0].data.clone()
    if moved == "channels_last":
        params[0].data = data.to(memory_format=torch.channels_last)
    elif moved == "gaps":
        params[0].data = torch.zeros(4, 3, 5, 10, device=device)[..., ::2].copy_(data)
    else:
        params[0].data = data.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    strides = params[0].stride()
    assert torch.equal(packed(table, params), before)
    center = values(table.numel, torch.float32, device, seed=4)
    version = params[0]._version
    table.blend_(center, torch.full((5,), 0.5, device=device))
    torch.testing.assert_close(params[0].data, data + 0.5 * (center[:300].view(4, 3, 5, 5) - data))
    assert params[0].stride() == strides and params[0]._version > version


@on_devices
def test_channels_last_at_construction_travels_in_memory_order(device: str, table_of: type[LayerTable]) -> None:
    param = nn.Parameter(values(300, torch.float32, device).view(4, 3, 5, 5).to(memory_format=torch.channels_last))
    table = table_of([param])
    assert torch.equal(packed(table, [param]), param.detach().permute(0, 2, 3, 1).reshape(-1))


@on_devices
def test_stride_of_a_dimension_of_one_is_no_change(device: str, table_of: type[LayerTable]) -> None:
    param = nn.Parameter(values(100, torch.float32, device).view(4, 1, 5, 5))
    table = table_of([param])
    param.data = param.data.as_strided((4, 1, 5, 5), (25, 1, 5, 1))
    assert torch.equal(packed(table, [param]), wire(param).detach())


@on_devices
def test_follows_a_change_of_dtype(device: str, table_of: type[LayerTable]) -> None:
    params = parameters(device)
    table = table_of(params)
    for param in params:
        param.data = param.data.bfloat16()
    assert torch.equal(packed(table, params), torch.cat([wire(param) for param in params]).detach())


@on_devices
def test_tells_autograd_what_it_wrote(device: str, table_of: type[LayerTable]) -> None:
    params = parameters(device)
    versions = [param._version for param in params]
    out = torch.zeros(30309, device=device)
    table = table_of(params)
    table.pack(torch.ones(5, device=device), out)
    assert out._version == 1 and [param._version for param in params] == versions
    table.blend_(out.clone(), torch.ones(5, device=device))
    assert all(param._version > version for param, version in zip(params, versions, strict=True))


def test_errors_name_the_parameter(table_of: type[LayerTable]) -> None:
    params = parameters("cpu")
    table = table_of(params)
    params[1].data = torch.zeros(8)
    with pytest.raises(RuntimeError, match=r"params\[1\] has changed its shape from \[7\] to \[8\]"):
        packed(table, params)
    with pytest.raises(RuntimeError, match=r"weights has shape \[2\]: \[5\] is needed"):
        table_of(parameters("cpu")).pack(torch.ones(2), torch.empty(30309))
    with pytest.raises(RuntimeError, match=r"center has shape \[4\]: \[30309\] is needed"):
        table_of(parameters("cpu")).blend_(torch.ones(4), torch.ones(5))


def test_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(RuntimeError, match=r"params\[1\] has dtype Long"):
        LayerTable([torch.ones(2), torch.ones(2).long()])
    with pytest.raises(RuntimeError, match=r"params\[0\] has elements that share memory"):
        LayerTable([torch.ones(2).expand(3, 2)])
    with pytest.raises(RuntimeError, match=r"center shares memory with"):
        param = torch.ones(6)
        LayerTable([param]).blend_(param, torch.ones(1))


def test_empty_table() -> None:
    table = LayerTable([])
    assert table.numel == 0 and table.grad_norms().shape == (0,) and table.norms().shape == (0,)
    table.pack(torch.empty(0), torch.empty(0))
    table.blend_(torch.empty(0), torch.empty(0))


def test_many_python_threads_may_share_a_table() -> None:
    params = parameters("cpu")
    for param in params:
        param.grad = torch.ones_like(param)
    table = LayerTable(params)
    wanted = table.norms()
    wrong: list[Tensor] = []

    def work() -> None:
        for _ in range(50):
            table.grad_norms()
            if not torch.equal(table.norms(), wanted):
                wrong.append(table.norms())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_follows_its_parameters_to_another_device_and_back() -> None:
    params = parameters("cpu")
    table = LayerTable(params)
    before = packed(table, params)
    for device in ("cuda", "cpu"):
        for param in params:
            param.data = param.data.to(device)
        assert torch.equal(packed(table, params).cpu(), before)
