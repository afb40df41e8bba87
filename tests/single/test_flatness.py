"""Flatness against the exact Hessian of small models, and the command on a saved one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from grawa_hvd.flatness import Flatness, flatness
from grawa_hvd.flatness.hutchinson import norm_and_trace
from grawa_hvd.flatness.lanczos import lanczos

FLOAT64_ROUNDING = 1e-12  # some 1,000 roundings, of the products and of what is summed up


def network() -> nn.Module:
    """99 parameters, batch statistics and dropout, in training mode."""
    torch.manual_seed(1)
    layers = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)
    model = nn.Sequential(*layers).double()
    model(torch.randn(64, 5, dtype=torch.float64))  # statistics other than 0 and 1
    return model


def batches() -> list[tuple[Tensor, Tensor]]:
    """3 of unequal length."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (50,), generator=generator)
    return list(zip(inputs.split(20), labels.split(20), strict=True))


def symmetric(size: int, generator: torch.Generator) -> Tensor:
    """A random matrix."""
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return matrix + matrix.T


def exact(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The Hessian [P, P] and the gradient [P] of the mean cross entropy of all examples, in evaluation mode."""
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    names, shapes = zip(*((name, value.shape) for name, value in model.named_parameters()), strict=True)
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        parameters = {name: part.view(shape) for name, shape, part in zip(names, shapes, parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(model, parameters, (inputs,)), labels)

    model.eval()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        found = hessian(loss)(vector), torch.func.grad(loss)(vector)
    model.train()
    return found


def measured(**options: Any) -> tuple[Flatness, Tensor, Tensor]:
    """The flatness of the network, and its exact Hessian and gradient."""
    model, data = network(), batches()
    found = flatness(model, "cross_entropy", data, progress=False, **options)
    return (found, *exact(model, data))


def test_with_as_many_iterations_as_parameters_all_is_exact() -> None:
    found, matrix, gradient = measured(iterations=1000)
    size = len(matrix)
    assert found.parameters == len(found.eigenvalues) == size
    scale = float(matrix.norm())
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(matrix), rtol=0, atol=FLOAT64_ROUNDING * scale)
    assert found.frobenius_norm == pytest.approx((scale, 0.0), abs=FLOAT64_ROUNDING * scale)
    assert found.lanczos_norm == pytest.approx(scale, rel=FLOAT64_ROUNDING)
    assert found.trace == pytest.approx((float(matrix.trace()), 0.0), abs=size * FLOAT64_ROUNDING * scale)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=FLOAT64_ROUNDING)
    assert float(found.weights.sum()) == pytest.approx(1.0, rel=FLOAT64_ROUNDING)


@pytest.mark.parametrize("seed", range(5))
def test_a_few_iterations_are_as_near_as_they_say(seed: int) -> None:
    found, matrix, _ = measured(iterations=6, vectors=30, seed=seed)
    # 5 standard errors, themselves from 30 samples: missed 3 times in 100,000 (Student, 29 degrees of freedom).
    for estimate, truth in ((found.frobenius_norm, matrix.norm()), (found.trace, matrix.trace())):
        assert 0 < estimate.error < estimate.value / 4
        assert abs(estimate.value - float(truth)) < 5 * estimate.error
    largest, error = found.largest_eigenvalue
    eigenvalues = torch.linalg.eigvalsh(matrix)
    assert largest <= float(eigenvalues[-1]) * (1 + FLOAT64_ROUNDING)
    assert float((eigenvalues - largest).abs().min()) <= error + FLOAT64_ROUNDING * float(matrix.norm())
    assert found.lanczos_norm < float(matrix.norm())


def test_the_standard_errors_are_those_of_repetition() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = symmetric(60, generator)
    known = lanczos(lambda vector: matrix @ vector, matrix[0], 3, generator)
    runs = [norm_and_trace(lambda vector: matrix @ vector, known, 20, generator) for _ in range(200)]
    for estimates, truth in zip(zip(*runs, strict=True), (matrix.norm(), matrix.trace()), strict=True):
        values, errors = torch.tensor(estimates, dtype=torch.float64).T
        # The spread of 200 has a relative error of 1/√398 = 5%; 3 of these.
        assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.15)
        assert abs(float(values.mean() - truth)) < 4 * float(values.std()) / 200**0.5


def test_quadrature_has_the_moments_of_the_first_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = symmetric(40, generator)
    start = torch.randn(40, generator=generator, dtype=torch.float64)
    found = lanczos(lambda vector: matrix @ vector, start, 4, generator)
    values, weights, _ = found.spectrum()
    unit = start / start.norm()
    for power in range(8):  # n points integrate polynomials up to degree 2n − 1
        moment = float(unit @ torch.linalg.matrix_power(matrix, power) @ unit)
        rounding = 1e-10 * float(matrix.norm()) ** power
        assert float((weights * values**power).sum()) == pytest.approx(moment, abs=rounding)
    assert found.squared_norm() == pytest.approx(float((matrix @ found.basis.T).square().sum()), rel=FLOAT64_ROUNDING)


@pytest.mark.parametrize("eigenvalues", [[2.0] * 9, [0.0] * 9, [3.0, 3.0, 3.0, 1.0, 1.0, 0.0, 0.0, -2.0, -2.0]])
def test_eigenvalues_that_stand_more_than_once_are_all_found(eigenvalues: list[float]) -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64))[0]
    matrix = turn @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ turn.T
    found = lanczos(lambda vector: matrix @ vector, turn.sum(1), 9, generator)
    torch.testing.assert_close(found.spectrum()[0], torch.tensor(sorted(eigenvalues), dtype=torch.float64),
                               rtol=0, atol=1e-12)  # fmt: skip


def test_model_and_random_numbers_are_as_before() -> None:
    model = network()
    model[1].eval()  # frozen statistics
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    data = batches()
    model(data[0][0]).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
    state = torch.get_rng_state()
    with torch.no_grad():
        flatness(model, nn.CrossEntropyLoss(), data, iterations=3, vectors=2, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_order_does_not_matter_frozen_parameters_do_not_count_and_float32_is_near() -> None:
    model, data = network().float(), batches()
    model[0].requires_grad_(False)
    inputs, labels = (torch.cat(parts) for parts in zip(*data, strict=True))
    shuffled = DataLoader(TensorDataset(inputs.float(), labels), batch_size=16, shuffle=True)
    found = flatness(model, "cross_entropy", shuffled, iterations=60, progress=False)
    assert found.parameters == 8 + 8 + 3 * 8 + 3
    model.double()
    matrix = exact(model, data)[0][48:, 48:]
    # Each product is a sum of 50 examples: some 50 roundings of 6e-8.
    assert found.frobenius_norm.value == pytest.approx(float(matrix.norm()), rel=1e-5)


def test_attention_is_differentiated_twice() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 3, dtype=torch.float64))
    data = [(torch.randn(6, 3, 8, dtype=torch.float64), torch.randint(3, (6,)))]
    found = flatness(model, "cross_entropy", data, iterations=5, vectors=4, progress=False)
    matrix, gradient = exact(model, data)
    assert found.gradient_norm == pytest.approx(float(gradient.norm()), rel=FLOAT64_ROUNDING)
    assert abs(found.frobenius_norm.value - float(matrix.norm())) < 6 * found.frobenius_norm.error


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vectors": 1}, "vectors must be an integer of at least 2, but is 1"),
        ({"iterations": 0}, "iterations must be an integer of at least 1, but is 0"),
        ({"loss": "hinge"}, "loss must be .*cross_entropy.*'hinge'"),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "loss must be a module with reduction"),
        ({"model": nn.Tanh()}, "but has none"),
        ({"model": nn.Linear(5, 3).half()}, "float32 or float64, but has torch.float16 on cpu"),
        ({"loader": iter(batches())}, "loader must be read many times over"),
        ({"loader": []}, "loader must have a batch"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    given = {"model": network(), "loss": "cross_entropy", "loader": batches(), "progress": False, **changed}
    with pytest.raises(ValueError, match=message):
        flatness(**given)


def test_examples_that_change_from_pass_to_pass_are_refused() -> None:
    class Augmented:
        def __iter__(self) -> Any:
            return ((inputs + torch.randn_like(inputs), labels) for inputs, labels in batches())

    with pytest.raises(ValueError, match="same examples in every pass"):
        flatness(network(), "cross_entropy", Augmented(), progress=False)


def test_without_curvlinops_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    with pytest.raises(ImportError, match=r"grawa_hvd\[flatness\]"):
        flatness(network(), "cross_entropy", batches(), progress=False)


COMMAND = [sys.executable, "-m", "grawa_hvd.flatness"]
TRAINING = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_flatness import batches, network
"""


def test_the_command_measures_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "training.py").write_text(TRAINING)
    model = network()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    options = ["--model", "training:network", "--weights", "model.pt", "--data", "training:batches",
               "--loss", "cross_entropy", "--iterations", "5", "--json", "found.json"]  # fmt: skip
    run = subprocess.run([*COMMAND, *options], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    here = flatness(model, "cross_entropy", batches(), iterations=5, progress=False)
    assert str(here) in run.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["frobenius_norm"]["value"] == pytest.approx(here.frobenius_norm.value)
    assert written["eigenvalues"] == pytest.approx(here.eigenvalues.tolist())


def test_the_command_has_help_and_names_what_it_does_not_find() -> None:
    help_ = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--model MODULE:FACTORY" in help_
    command = [*COMMAND, "--model", "no_such:thing", "--data", "json:loads"]
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "No module named 'no_such'" in wrong.stderr
