"""Differences from the centre in 16 bits: what they cost in precision, what they save in bytes."""

from __future__ import annotations

import copy
from typing import Any

import peers
import pytest
import torch
from learner import compare, too_large
from models import across, copies, equal_on_all_ranks, errors, flat, mlp, same, set_gradients, sgd, train, wrap
from peers import hvd
from simulation import Scheme
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.rounds.rows import BEFORE_COLUMNS

pytestmark = pytest.mark.ranks(2)

FP16, BF16 = grawa_hvd.Compression.fp16, grawa_hvd.Compression.bf16
UNIT = {FP16: 2.0**-11, BF16: 2.0**-8}  # unit roundoffs
# Horovod cannot add bfloat16 numbers.
by_kind = pytest.mark.parametrize(
    "compression",
    [pytest.param(FP16, id="fp16"), pytest.param(BF16, id="bf16", marks=pytest.mark.torch_distributed)],
)


def error_bound(compression: Any, moves: list[float]) -> float:
    """Each worker's part is rounded once and so is the sum of the two: 2u·max‖x − c‖, doubled for the residuals."""
    return 4 * UNIT[compression] * max(moves)


@by_kind
@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
def test_the_center_is_off_by_the_rounding_of_what_workers_moved(averaging: str, compression: Any) -> None:
    """The first round travels whole, so that at the second all that differs is how it travelled."""
    centers, reports = [], []
    for chosen in (grawa_hvd.Compression.none, compression):
        model, told = mlp(), []
        optimizer = wrap(model, period=4, averaging=averaging, compression=chosen, on_round=told.append)
        train(model, optimizer, range(8))
        centers.append(list(optimizer.center.values()))
        train(model, optimizer, range(8, 12))  # the distances of a round travel with the next one
        reports.append(told)
    error = float((flat(centers[0]) - flat(centers[1])).norm())
    assert 0 < error <= error_bound(compression, reports[0][2].distances)
    assert equal_on_all_ranks(centers[1])
    elements = sum(parameter.numel() for parameter in mlp().parameters())
    row = peers.size() * 8 * (BEFORE_COLUMNS + (4 if averaging == "lgrawa" else 0))
    assert [report.bytes for report in reports[1]] == [row + width * elements for width in (4, 2, 2)]


@by_kind
@pytest.mark.ranks(min=2)
def test_the_center_is_the_exact_mean_but_for_the_rounding_of_the_wire(compression: Any, size: int) -> None:
    """Element by element: each of M parts is rounded once, and each of M − 1 sums; numbers on the wire are below 2¹⁴.

    Where they are subnormal, float16 rounds to a multiple of 2⁻²⁴.
    """
    unit, moves = UNIT[compression], torch.randn(2, size, 300, generator=torch.Generator().manual_seed(5)).double()
    model = nn.ParameterList([torch.zeros(300, dtype=torch.float64)])
    optimizer = wrap(
        model, sgd(model, 1.0), averaging="uniform", period=1, pull=1.0, proximity=0.0, compression=compression
    )
    for move in moves:
        set_gradients(model, move[peers.rank()])
        optimizer.step()
    error = (optimizer.center["0"] + moves.mean(dim=1).sum(dim=0)).abs()
    subnormal = 2.0**-25 * float(moves[1].norm(dim=1).max()) / 2.0**13
    bound = size * (1 + unit) ** size * (unit * moves[1].abs().mean(dim=0) + subnormal)
    assert bool((error <= bound).all())
    assert float((error / bound).max()) > 0.1


@pytest.mark.horovod
@pytest.mark.parametrize("name", ["none", "fp16"])
def test_horovods_own_compressors_mean_the_same(name: str) -> None:
    results = []
    for compression in (getattr(hvd.Compression, name), getattr(grawa_hvd.Compression, name)):
        model = mlp()
        train(model, wrap(model, compression=compression), range(9))
        results.append(copies(model))
    assert same(results[0], results[1])


@pytest.mark.horovod
def test_bfloat16_is_refused_with_what_is_allowed() -> None:
    """As Horovod itself does: should it learn to add such numbers, this test tells."""
    for told in errors(lambda: wrap(mlp(), compression=grawa_hvd.Compression.bf16)):
        assert told[0] == "ValueError"
        assert "Horovod cannot add bfloat16 numbers" in told[1] and "Compression.fp16 takes as many bytes" in told[1]
    numbers = torch.ones(4, dtype=torch.bfloat16)
    for told in errors(lambda: hvd.allreduce(numbers, op=hvd.Sum, name="bfloat16")):
        assert told == ("ValueError", "Tensor type torch.BFloat16Tensor is not supported.")


def center_errors(compression: Any, moves: Tensor, pull: float, feedback: bool) -> list[float]:
    """‖c − c*‖ round by round, c* that of workers whose differences travel whole.

    Args:
        compression: in what they travel here.
        moves: what each worker subtracts from its parameters before each round, [rounds, M, elements].
        pull: λ.
        feedback: False to drop what rounding took away.
    """
    model = nn.ParameterList([torch.zeros(moves.shape[2], dtype=torch.float64)])

    def after_round(report: Any) -> None:
        for residual in [] if feedback else optimizer._worker.member.model.rooms.exchange._residuals.buffers:
            residual.zero_()

    optimizer = wrap(
        model, sgd(model, 1.0), averaging="uniform", period=1, pull=pull, proximity=0.0,
        compression=compression, on_round=after_round,
    )  # fmt: skip
    exact, errors = torch.zeros_like(moves[0]), []
    for move in moves:
        exact = exact - move
        set_gradients(model, move[peers.rank()])
        optimizer.step()
        center = exact.mean(dim=0)
        exact = exact + pull * (center - exact)
        errors.append(float((optimizer.center["0"] - center).norm()))
    return errors


@by_kind
def test_feedback_keeps_the_error_of_many_rounds_at_that_of_one(compression: Any) -> None:
    """One worker makes the same move in every round and all are set to the centre: what rounds down always does.

    The others stand still: a sum of two numbers on the wire is rounded once more, and of that no worker knows.
    """
    torch.manual_seed(3)
    moves = torch.zeros(24, peers.size(), 300, dtype=torch.float64)
    moves[:, 0] = torch.randn(300).double()
    kept, lost = (center_errors(compression, moves, 1.0, feedback) for feedback in (True, False))
    # The same error in each of 23 compressed rounds; with feedback only the last one's is not made good.
    assert lost[-1] > 15 * lost[1] > 0
    assert max(kept[1:]) <= 3 * kept[1]


@pytest.mark.parametrize("pull", [0.0, 0.3, 0.7])
def test_feedback_never_costs_more_than_one_more_rounding(pull: float) -> None:
    """A worker that keeps 1 − λ of what rounding took sends that part twice: two independent errors instead of one."""
    torch.manual_seed(4)
    moves = torch.randn(24, peers.size(), 300).double()
    kept, lost = (center_errors(FP16, moves, pull, feedback) for feedback in (True, False))
    # √2, and 5% for chance: sums of 20 rounds over 300 numbers.
    assert sum(kept[4:]) <= 1.05 * 2**0.5 * sum(lost[4:])


@by_kind
@pytest.mark.parametrize("size_of_moves", [1e-9, 1e6, 1e30])
def test_tiny_and_huge_differences_travel_as_well_as_others(size_of_moves: float, compression: Any, rank: int) -> None:
    """float16 alone ends at 65504 and loses bits below 6e-5: the scale is that of the distances."""
    model = nn.ParameterList([torch.zeros(64)])
    optimizer = wrap(
        model,
        sgd(model, 1.0),
        averaging="uniform",
        period=1,
        pull=1.0,
        proximity=0.0,
        compression=compression,
    )
    moves = torch.linspace(1, 2, 64) * (rank + 1)
    for _ in range(3):
        set_gradients(model, size_of_moves * moves)
        optimizer.step()
    expected = -3 * size_of_moves * 1.5 * torch.linspace(1, 2, 64, dtype=torch.float64)
    assert float(((model[0].double() - expected) / expected).abs().max()) <= 4 * UNIT[compression]


COMBINED = {
    "plain": Scheme(proximity=0.3),
    "overlap": Scheme("grawa", overlap=3, proximity=0.3),
    "fragments": Scheme("lgrawa", fragment_of=(0, 1, 1, 1), proximity=0.3),
    "outer": Scheme("uniform", proximity=0.3, outer_momentum=0.7),
    "all": Scheme("lgrawa", "fresh", overlap=2, fragment_of=(0, 1, 2, 2), proximity=0.3, outer_momentum=0.5),
}


@by_kind
@pytest.mark.parametrize("scheme", COMBINED.values(), ids=COMBINED)
def test_compressed_runs_stay_by_the_formulas(scheme: Scheme, compression: Any) -> None:
    """Workers move by less than their parameters' size between rounds, of which there are five or less a fragment."""
    errors = compare(scheme, steps=20, compression=compression)
    assert not too_large(errors, 5 * 2 * UNIT[compression])
    assert errors["center"] > 1e-6


@by_kind
@pytest.mark.parametrize(
    "options",
    [{}, {"outer_momentum": 0.6}, {"overlap": 2}, {"fragments": 2}, {"overlap": 3, "fragments": 2, "groups": 2}],
    ids=str,
)
def test_a_compressed_run_continues_bitwise_from_a_checkpoint(options: dict[str, Any], compression: Any) -> None:
    def made(seed: int) -> tuple[nn.Module, Any]:
        model = mlp(seed)
        return model, wrap(model, period=4, compression=compression, **options)

    model, optimizer = made(0)
    train(model, optimizer, range(10))
    state, parameters = copy.deepcopy(optimizer.state_dict()), copies(model)
    train(model, optimizer, range(10, 21))
    found = []
    for with_residual in (True, False):
        again, resumed = made(7)
        for parameter, saved in zip(again.parameters(), parameters, strict=True):
            parameter.data.copy_(saved)
        saved = copy.deepcopy(state)
        for tensors in saved["grawa"]["state"].values():
            tensors["residual"].mul_(with_residual)
        resumed.load_state_dict(saved)
        train(again, resumed, range(10, 21))
        found.append(same(copies(model), copies(again)))
    assert found == [True, False]


@by_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("outer_momentum", [0.0, 0.5])
def test_parameters_of_every_dtype_travel_in_two_bytes(
    dtype: torch.dtype, outer_momentum: float, compression: Any
) -> None:
    reports, centers = [], []
    for chosen in (grawa_hvd.Compression.none, compression):
        model, told = mlp().to(dtype), []
        optimizer = wrap(
            model, period=2, averaging="uniform", compression=chosen, outer_momentum=outer_momentum,
            on_round=told.append,
        )  # fmt: skip
        for step in range(8):
            generator = torch.Generator().manual_seed(10 * step + peers.rank())
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            optimizer.step()
        reports.append(told)
        centers.append(flat(optimizer.center.values()))
        assert equal_on_all_ranks(optimizer.center.values())
        assert bool(centers[-1].isfinite().all())
    elements = sum(parameter.numel() for parameter in mlp().parameters())
    assert reports[1][1].bytes == peers.size() * 8 * BEFORE_COLUMNS + 2 * elements
    # Four rounds; the centre itself is rounded in its own dtype, which may be coarser than the wire.
    own = max(torch.finfo(dtype).eps, 2 * UNIT[compression]) * float(centers[0].norm())
    assert float((centers[0] - centers[1]).norm()) <= 4 * (own + error_bound(compression, reports[0][-1].distances))


@pytest.mark.parametrize("options", [{}, {"overlap": 2}, {"fragments": 2}], ids=str)
@pytest.mark.parametrize("averaging", ["uniform", "lgrawa"])
@pytest.mark.fault("diverged")
def test_a_diverged_worker_spoils_no_scale_and_comes_back(averaging: str, options: dict[str, Any], rank: int) -> None:
    model = mlp()
    optimizer = wrap(
        model,
        sgd(model, 0.05, momentum=0.9),
        period=4,
        averaging=averaging,
        compression=grawa_hvd.Compression.fp16,
        **options,
    )
    train(model, optimizer, range(7))
    if rank == 0:
        model[0].weight.data[0, 0] = torch.inf
    before = [tensor.clone() for tensor in optimizer.center.values()]
    train(model, optimizer, range(7, 19))
    assert bool(across(model).isfinite().all())
    assert equal_on_all_ranks(optimizer.center.values())
    assert not same(before, optimizer.center.values())
    assert bool((optimizer.last_round.weights > 0).all())
