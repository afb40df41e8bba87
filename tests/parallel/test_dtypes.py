"""Every dtype and every memory order: the centre is the weighted sum that docs/design.md writes down."""

from __future__ import annotations

from typing import Any

import peers
import pytest
import torch
from models import across, equal_on_all_ranks, errors, set_gradients, wrap
from torch import Tensor, nn

import grawa_hvd

# What is tested here does not depend on how many ranks there are.
pytestmark = pytest.mark.ranks(2)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CHANNELS_LAST = torch.channels_last


class Before:
    """The parameters of every rank as they were just before the last round."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._own: list[Tensor] = []
        optimizer.register_step_post_hook(self._copy)

    def _copy(self, optimizer: Any, *_: Any) -> None:
        self._own = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def means(self) -> list[Tensor]:
        """Σ_m β[m,l]·x[m,l] in float64, a tensor for each parameter, in its shape; a collective."""
        weights = self._optimizer.last_round.weights
        rows = torch.split(across(self._own), [own.numel() for own in self._own], dim=1)
        return [
            (weights[:, [layer]] * row).sum(dim=0).reshape(own.shape)
            for layer, (own, row) in enumerate(zip(self._own, rows, strict=True))
        ]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(peers.rank())


def step(model: nn.Module, optimizer: Any, source: torch.Generator) -> None:
    """A step along gradients that this rank alone has."""
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=source)
        set_gradients([parameter], (1 + peers.rank()) * values)
    optimizer.step()


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within the rounding of M products and M sums in that dtype."""
    assert found.shape == expected.shape
    if found.numel():
        bound = 2 * (peers.size() + 1) * torch.finfo(dtype).eps * max(1.0, float(expected.abs().max()))
        assert float((found.double() - expected).abs().max()) <= bound


def assert_rounds_are_right(model: nn.Module, rounds: int = 3, **options: Any) -> None:
    optimizer = wrap(model, **{"period": 2, "pull": 1.0, "proximity": 0.0, **options})
    before, source = Before(optimizer), generator()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(rounds):
        for _ in range(2):
            step(model, optimizer, source)
        for (name, parameter), mean in zip(model.named_parameters(), before.means(), strict=True):
            found.append((parameter.detach().clone(), optimizer.center[name].clone(), mean))
    assert equal_on_all_ranks(model)
    assert optimizer.rounds == rounds
    for parameter, center, mean in found:  # not in between: a rank that fails must not leave the others in a round
        assert center.dtype == parameter.dtype
        assert_close(center, mean, parameter.dtype)
        assert torch.equal(parameter, center)


def convolution() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(1, 6, 3), nn.Linear(3, 2))


@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_centre_is_the_weighted_sum(dtype: torch.dtype, averaging: str) -> None:
    assert_rounds_are_right(convolution().to(dtype), averaging=averaging)


@pytest.mark.parametrize("groups", [None, 1, 3])
def test_dtypes_can_be_mixed_in_one_model(groups: int | None) -> None:
    model = nn.ParameterList([torch.ones(3, 5, dtype=dtype) for dtype in (*DTYPES, *DTYPES)])
    assert_rounds_are_right(model, groups=groups)


@pytest.mark.parametrize("compression", ["none", "fp16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compression_costs_no_more_than_its_own_rounding(dtype: torch.dtype, compression: str) -> None:
    model = nn.ParameterList([torch.ones(7, 3, dtype=dtype)])
    optimizer = wrap(model, period=1, pull=1.0, compression=getattr(grawa_hvd.Compression, compression))
    before, source = Before(optimizer), generator()
    step(model, optimizer, source)
    (expected,) = before.means()
    coarser = torch.float16 if compression == "fp16" and torch.finfo(dtype).eps < 1e-3 else dtype
    assert_close(optimizer.center["0"], expected, coarser)
    assert optimizer.center["0"].dtype == dtype
    assert equal_on_all_ranks(model)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bfloat16_and_others_longer_than_one_piece_of_the_wire(dtype: torch.dtype) -> None:
    assert_rounds_are_right(nn.ParameterList([torch.ones(2**16 + 5, dtype=dtype), torch.ones(3, dtype=dtype)]), 1)


@pytest.mark.parametrize("outer_momentum", [0.0, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_pull_moves_a_worker_the_asked_way_to_the_centre(dtype: torch.dtype, outer_momentum: float) -> None:
    model = nn.ParameterList([torch.ones(4, 3, dtype=dtype)])
    optimizer = wrap(model, period=1, pull=0.3, proximity=0.0, outer_momentum=outer_momentum)
    own: list[Tensor] = []
    optimizer.register_step_post_hook(lambda *_: own.append(model[0].detach().double().clone()))
    source = generator()
    pulled = []
    for _ in range(3):
        step(model, optimizer, source)
        expected = 0.7 * own[-1] + 0.3 * optimizer.center["0"].double()
        pulled.append((model[0].detach().clone(), expected))
    for found, expected in pulled:
        assert_close(found, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_last_weights_meet_their_own_values(dtype: torch.dtype) -> None:
    model = convolution().to(dtype).to(memory_format=CHANNELS_LAST)
    strides = [parameter.stride() for parameter in model.parameters()]
    assert_rounds_are_right(model)
    assert [parameter.stride() for parameter in model.parameters()] == strides


def test_parameters_that_are_not_contiguous_meet_their_own_values() -> None:
    torch.manual_seed(0)
    views = {
        "transposed": torch.randn(6, 8).t(),
        "permuted": torch.randn(6, 8, 5).permute(2, 0, 1),
        "every_second": torch.randn(6, 8)[:, ::2],
        "a_slice": torch.randn(6, 8, 5)[1:3, 2:4],
        "channels_last_3d": torch.randn(2, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d),
    }
    model = nn.Module()
    for name, view in views.items():
        model.register_parameter(name, nn.Parameter(view))
    assert not all(parameter.is_contiguous() for parameter in model.parameters())
    assert_rounds_are_right(model)


def test_empty_and_0_dimensional_parameters_travel() -> None:
    model = nn.ParameterList([torch.tensor(2.0), torch.empty(0), torch.empty(3, 0, 2), torch.ones(1), torch.ones(2, 2)])
    assert_rounds_are_right(model)


@pytest.mark.parametrize("changed_at", ["start", "after a round"])
@pytest.mark.fault("differ")
def test_memory_formats_that_differ_across_ranks_are_an_error_everywhere_or_handled(
    changed_at: str, rank: int, size: int
) -> None:
    model = convolution()
    optimizer = wrap(model, proximity=0.0, pull=1.0)
    before, source = Before(optimizer), generator()
    if changed_at == "after a round":
        for _ in range(2):
            step(model, optimizer, source)
    if rank == size - 1:
        model.to(memory_format=CHANNELS_LAST)

    def round_() -> None:
        for _ in range(2):
            step(model, optimizer, source)

    found = errors(round_)
    if any(kind for kind, _ in found):
        assert {kind for kind, _ in found} == {"ValueError"}
        assert all("0.weight" in text and "memory" in text and f"rank {size - 1}" in text for _, text in found)
        return
    for parameter, mean in zip(model.parameters(), before.means(), strict=True):
        assert_close(parameter.detach(), mean, torch.float32)


@pytest.mark.parametrize("outer_momentum", [0.0, 0.5])
@pytest.mark.parametrize("proximity", [0.0, 1.0])
@pytest.mark.parametrize("change", ["channels_last", "contiguous"])
def test_a_change_of_memory_format_in_a_run_changes_no_value(
    change: str, proximity: float, outer_momentum: float
) -> None:
    results = []
    for changes in (False, True):
        model = convolution()
        if change == "contiguous":
            model.to(memory_format=CHANNELS_LAST)
        optimizer = wrap(model, pull=0.5, proximity=proximity, outer_momentum=outer_momentum)
        source = generator()
        found: list[Tensor] = []
        for number in range(7):
            if changes and number == 3:
                model.to(memory_format=CHANNELS_LAST if change == "channels_last" else torch.contiguous_format)
            step(model, optimizer, source)
            seen = [*model.parameters(), *(optimizer.center or {}).values()]
            found += [tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in seen]
        results.append(found)
        assert optimizer.rounds == 3
    for plain, changed in zip(*results, strict=True):
        assert torch.allclose(plain, changed, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_taken_just_after_a_change_of_memory_format_holds_the_right_centre() -> None:
    model = convolution()
    optimizer = wrap(model)
    source = generator()
    for _ in range(3):
        step(model, optimizer, source)
    before = {name: tensor.clone() for name, tensor in optimizer.center.items()}
    model.to(memory_format=CHANNELS_LAST)
    saved = optimizer.state_dict()["grawa"]["state"]
    for number, (name, center) in enumerate(before.items()):
        assert torch.equal(optimizer.center[name], center), name
        assert torch.equal(saved[number]["center"], center), name


@pytest.mark.parametrize("outer_momentum", [0.0, 0.5])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(
    ("first", "then"),
    [(torch.float32, torch.float64), (torch.float32, torch.bfloat16), (torch.float16, torch.float32)],
    ids=str,
)
def test_a_model_that_is_cast_after_the_first_round_goes_on(
    first: torch.dtype, then: torch.dtype, number: int, outer_momentum: float
) -> None:
    model = convolution().to(first)
    optimizer = wrap(model, proximity=0.1, pull=1.0, outer_momentum=outer_momentum)
    before, source = Before(optimizer), generator()
    for _ in range(number):
        step(model, optimizer, source)
    model.to(then)
    optimizer.zero_grad()
    for _ in range(8 - number):
        step(model, optimizer, source)
    assert optimizer.rounds == 4
    assert {tensor.dtype for tensor in optimizer.center.values()} == {then}
    assert bool(torch.isfinite(optimizer.last_round.scores).all())
    assert equal_on_all_ranks(model)
    assert before.means()[0].shape == model[0].weight.shape
