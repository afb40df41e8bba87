"""Layouts: layers, buckets, memory orders, and what ranks compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from grawa_hvd.model.cut import Groups
from grawa_hvd.model.layout import Layout
from grawa_hvd.model.names import averaged, validated_names
from grawa_hvd.rounds.agreement import digest


def layout_of(model: nn.Module, layers: str = "parameter", groups: Groups = None) -> Layout:
    return Layout({p: name for name, p in model.named_parameters()}, layers, groups)


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_layer_is_a_parameter_tensor_in_the_order_of_named_parameters() -> None:
    layout = layout_of(model())
    assert layout.layer_names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert layout.layer_of.tolist() == [0, 1, 2, 3]


def test_tensors_of_one_module_share_a_layer_and_its_norm_is_that_of_the_joined_gradient() -> None:
    net = model()
    layout = layout_of(net, layers="module")
    assert layout.layer_names == ["0", "2"]
    net(torch.randn(5, 3)).square().sum().backward()
    joined = [torch.cat([p.grad.flatten() for p in module.parameters()]) for module in (net[0], net[2])]  # type: ignore[union-attr]
    torch.testing.assert_close(layout.grad_norms().float(), torch.stack([g.norm() for g in joined]))
    net[0].zero_grad()
    assert layout.grad_norms()[0] == -1
    net[0].bias.grad = torch.full((4,), 2.0)
    assert layout.grad_norms()[0] == 4


def test_parameters_without_names_are_layers_of_their_own() -> None:
    names: dict[Tensor, str] = {nn.Parameter(torch.zeros(1)): name for name in ("a.weight", "a.bias")}
    names |= {nn.Parameter(torch.zeros(1)): f"allreduce.noname.1.{j}" for j in range(2)}
    assert Layout(names, "module", None).layer_names == ["a", "allreduce.noname.1.0", "allreduce.noname.1.1"]


def test_one_bucket_a_dtype() -> None:
    net = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2)])
    assert [bucket.members for bucket in layout_of(net).buckets] == [[0, 1, 4, 5], [2, 3]]


def test_groups_by_number_and_by_list() -> None:
    net = model()
    assert [bucket.members for bucket in layout_of(net, groups=2).buckets] == [[0, 1], [2, 3]]
    parameters = list(net.parameters())
    listed: list[list[Tensor]] = [[parameters[3], parameters[0]]]
    assert [bucket.members for bucket in layout_of(net, groups=listed).buckets] == [[0, 3], [1], [2]]
    assert [bucket.members for bucket in layout_of(net, groups=9).buckets] == [[0], [1], [2], [3]]


def test_views_have_the_parameters_memory_order() -> None:
    weight = nn.Parameter(torch.randn(4, 3, 5, 2).to(memory_format=torch.channels_last))
    layout = Layout({weight: "weight"}, "parameter", None)
    (bucket,) = layout.buckets
    buffer = bucket.new_buffer()
    bucket.table.pack(torch.ones(1), buffer)
    (view,) = bucket.views(buffer)
    assert torch.equal(view, weight)
    assert view.stride() == weight.stride()


def test_descriptions_tell_names_shapes_dtypes_and_memory_orders_apart() -> None:
    def described(tensor: Tensor, name: str = "w") -> int:
        return digest(Layout({nn.Parameter(tensor): name}, "parameter", None).describe())

    plain = torch.zeros(2, 3, 2, 2)
    others = [torch.zeros(3, 2, 2, 2), plain.double(), plain.to(memory_format=torch.channels_last)]
    digests = [described(plain), described(plain, "v"), *(described(other) for other in others)]
    assert len(set(digests)) == len(digests)
    assert described(torch.ones(2, 3, 2, 2)) == described(plain)
    assert all(value == int(float(value)) for value in digests)


def test_only_trained_floating_point_parameters_are_averaged() -> None:
    frozen, trained = nn.Parameter(torch.zeros(2), requires_grad=False), nn.Parameter(torch.zeros(2))
    integers = nn.Parameter(torch.zeros(2, dtype=torch.int32), requires_grad=False)
    names: dict[Tensor, str] = {frozen: "frozen", trained: "trained", integers: "integers"}
    assert list(averaged(names, set()).values()) == ["trained"]
    assert list(averaged(names, {id(frozen)}).values()) == ["frozen", "trained"]


def test_of_parameters_that_share_their_memory_the_first_stands_for_all() -> None:
    first = nn.Parameter(torch.zeros(2))
    second, empty, other_empty = nn.Parameter(first.data), nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(0))
    names: dict[Tensor, str] = {first: "a", second: "b", empty: "c", other_empty: "d"}
    assert list(averaged(names, set()).values()) == ["a", "c", "d"]


def test_a_view_of_the_same_memory_is_the_same_whatever_its_shape() -> None:
    first = nn.Parameter(torch.zeros(3, 4))
    views = {"t": first.data.t(), "flat": first.data.view(-1), "more": first.data.view(3, 2, 1, 2)}
    parts = {"row": first.data[0], "column": first.data[:, 0], "rows": first.data[:2]}
    names: dict[Tensor, str] = {first: "a", **{nn.Parameter(own): name for name, own in {**views, **parts}.items()}}
    assert list(averaged(names, set()).values()) == ["a", *parts]


def test_complex_parameters_that_are_trained_are_refused_by_name() -> None:
    phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="phase is complex"):
        averaged({phase: "phase"}, set())
    assert averaged({phase.requires_grad_(False): "phase"}, set()) == {}


def test_a_tied_parameter_keeps_its_first_name() -> None:
    net = model()
    net[2].weight = nn.Parameter(torch.zeros(2, 4))
    pairs = [*net.named_parameters(), ("again", net[2].weight)]
    names = validated_names(pairs, [{"params": list(net.parameters())}])
    assert names[net[2].weight] == "2.weight"
    assert len(names) == 4
