"""The microbenchmark of the kernels: its models are the known ones, its figures complete, wrong results refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from devices import DEVICES

from benchmarks import kernels
from benchmarks.models import MODELS, numel
from benchmarks.operations import OPERATIONS, AdamwStep, Blend, LocalStep, Norms, Operation, Pack, SgdStep

TINY = [(3, 5), (1,), (70,)]


@pytest.mark.parametrize(
    "name, tensors, parameters",
    [
        ("tiny500", 500, 25_250),
        ("resnet20", 65, 272_474),
        ("densenet121", 364, 7_978_856),
        ("vgg16", 54, 14_728_266),
        ("huge", 1, 25_000_000),
        ("resnet50", 161, 25_557_032),
        ("wrn28_10", 80, 36_479_194),
        ("gpt2", 148, 124_439_808),
    ],
)
def test_models_have_the_published_numbers_of_tensors_and_parameters(name: str, tensors: int, parameters: int) -> None:
    shapes = MODELS[name]()
    assert (len(shapes), numel(shapes)) == (tensors, parameters)


def test_measures_every_way_and_writes_table_figures_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    models = ["--models", "tiny500", "resnet20"]
    kernels.main([*models, "--threads", "1", "--seconds", "0.01", "--json", str(figures), "--plot", str(picture)])
    assert torch.get_num_threads() == threads
    assert picture.read_bytes().startswith(b"\x89PNG")
    results = json.loads(figures.read_text())
    assert results["versions"]["torch"] == torch.__version__
    assert results["cpu"]
    assert str(tmp_path) not in figures.read_text()
    cells = [(cell["model"], cell["operation"], cell["threads"]) for cell in results["cells"]]
    assert cells == [(model, name, 1) for model in ("tiny500", "resnet20") for name in OPERATIONS]
    printed = capsys.readouterr().out
    for cell in results["cells"]:
        roles = [row["role"] for row in cell["rows"]]
        assert roles[0] == "ours" and "peer" in roles and roles.count("limit") == 1
        assert max(row["speedup_over_best_peer"] for row in cell["rows"] if row["role"] == "peer") == 1
        for row in cell["rows"]:
            times = row["microseconds"]
            assert 0 < times["lower_quartile"] <= times["median"] <= times["upper_quartile"]
            assert row["gigabytes_per_second"] == pytest.approx(row["bytes"] / times["median"] / 1e3)
            assert row["name"] in printed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", kernels.DTYPES.values(), ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_way_passes_its_check_in_every_dtype(name: str, dtype: torch.dtype, device: str) -> None:
    with torch.no_grad():
        errors = kernels.check(name, OPERATIONS[name](TINY, dtype, torch.device(device)), dtype)
    assert all(error < 0.05 for error in errors.values())


def _wrong_norms(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [1.1 * tensor.norm() for tensor in tensors]


def _nan_product(tensors: list[torch.Tensor], _weights: list[float]) -> list[torch.Tensor]:
    return [tensor * torch.nan for tensor in tensors]


def _no_pull(*_arguments: object) -> None:
    pass


@pytest.mark.parametrize(
    "operation, peer, wrong",
    [
        (Norms, "_foreach_norm", _wrong_norms),
        (Pack, "_foreach_mul", _nan_product),
        (Blend, "_foreach_lerp_", _no_pull),
        (SgdStep, "_foreach_lerp_", _no_pull),
        (AdamwStep, "_foreach_lerp_", _no_pull),
    ],
)
def test_a_wrong_result_is_refused(
    operation: type[Operation], peer: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers = operation(TINY, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(torch, peer, wrong)
    kind = "fused step" if issubclass(operation, LocalStep) else "foreach"
    name = next(name for name, value in OPERATIONS.items() if value is operation)
    with torch.no_grad(), pytest.raises(kernels.WrongResultError, match=f"{name}, {kind}"):
        kernels.check(name, buffers, torch.float32)


def test_large_models_rotate_over_more_memory_than_the_cache_holds() -> None:
    cache = 32 << 20
    assert kernels.buffer_sets(1 << 20, cache) == 0
    for size in (5 << 20, 32 << 20, 100_000_000, 500_000_000):
        assert kernels.buffer_sets(size, cache) * size >= 4 * cache
