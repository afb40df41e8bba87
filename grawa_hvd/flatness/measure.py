"""Flatness of a model over a loader, by products with the Hessian (curvlinops)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parameters_to_vector

from grawa_hvd.flatness.hutchinson import norm_and_trace
from grawa_hvd.flatness.lanczos import Product, lanczos
from grawa_hvd.flatness.result import Estimate, Flatness

# As torch.nn.functional calls them.
LOSSES: dict[str, Callable[[], nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "nll_loss": nn.NLLLoss,
    "mse_loss": nn.MSELoss,
    "binary_cross_entropy_with_logits": nn.BCEWithLogitsLoss,
}


def flatness(model: nn.Module, loss: nn.Module | str, loader: Iterable[tuple[Any, Tensor]], *, vectors: int = 10,
             iterations: int = 100, seed: int = 0, progress: bool = True) -> Flatness:  # fmt: skip
    """Measure the Hessian and the gradient of the mean loss at a model's parameters.

    Lanczos gives the pseudo-eigenvalues (Dimlioglu and Choromanska 2024, section 6.2). The norm and the trace are what
    the Hessian has in the directions of Lanczos, and Hutchinson's estimate of the rest. The model is measured in
    evaluation mode, and is as before afterwards.
    It takes iterations + vectors passes over the loader, each the work of a few gradients, and the memory of
    `iterations` copies of the parameters.

    Args:
        model: what loss(model(x), y) is computed of. Its parameters that require a gradient are those of the Hessian;
            they share a device and a type, float32 or float64.
        loss: a module whose `reduction` is "mean" or "sum", or a name in `LOSSES`. "mean" is by examples: batches may
            differ in length.
        loader: of batches (x, y), the same examples in every pass, in any order.
        vectors: random vectors for what is outside of Lanczos' directions, at least 2.
        iterations: of Lanczos, at least 1; no more are made than there are parameters.
        seed: of the random numbers. Those of the program go on afterwards as if nothing had happened.
        progress: show a bar.

    Raises:
        ImportError: without curvlinops, which the extra `flatness` installs.
        ValueError: naming the argument, its value and what is allowed; if two passes have different losses.
    """
    _check_integer("vectors", vectors, 2)
    _check_integer("iterations", iterations, 1)
    loss, parameters = _checked_loss(loss), _checked_parameters(model)
    if iter(loader) is loader:
        raise ValueError("loader must be read many times over, as a list or a DataLoader, but is an iterator")
    device = parameters[0].device
    # Attention has a second derivative in plain formulas alone.
    with _evaluated(model), _own_random_numbers(device, seed), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        hessian = _hessian(model, loss, parameters, loader)
        gradient, value = _gradient(hessian)
        iterations = min(iterations, gradient.numel())
        with _counted(hessian, iterations + vectors, progress) as product:
            return _measured(product, gradient, value, iterations, vectors, torch.Generator().manual_seed(seed))


def _measured(product: Product, gradient: Tensor, loss: float, iterations: int, vectors: int,
              generator: torch.Generator) -> Flatness:  # fmt: skip
    start = torch.randn(gradient.numel(), generator=generator, dtype=torch.float64).to(gradient)
    projection = lanczos(product, start, iterations, generator)
    norm, trace = norm_and_trace(product, projection, vectors, generator)
    eigenvalues, weights, residuals = projection.spectrum()
    largest = Estimate(float(eigenvalues[-1]), float(residuals[-1]))
    return Flatness(eigenvalues, weights, norm, trace, largest, float(gradient.norm()), loss, gradient.numel())


def _hessian(model: nn.Module, loss: nn.Module, parameters: list[nn.Parameter], loader: Iterable[Any]) -> Any:
    try:
        from curvlinops import HessianLinearOperator  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise ImportError('flatness needs curvlinops: pip install "grawa_hvd[flatness]"') from error
    if next(iter(loader), None) is None:
        raise ValueError("loader must have a batch, but is empty")
    # Its own check compares batches, and would refuse a loader that shuffles.
    return HessianLinearOperator(model, loss, parameters, loader, check_deterministic=False)


def _gradient(hessian: Any) -> tuple[Tensor, float]:
    """The gradient, [P], and the loss.

    Raises:
        ValueError: if a second pass has another loss: no Hessian belongs to a loss that varies.
    """
    gradient, first = hessian.gradient_and_loss()
    again = hessian.gradient_and_loss()[1]
    first, again = float(first), float(again)
    if not math.isclose(first, again, rel_tol=torch.finfo(gradient[0].dtype).eps ** 0.5):
        raise ValueError(
            f"loader must give the same examples in every pass, but the mean loss was {first:.8g} in the first and "
            f"{again:.8g} in the second: leave random augmentation and drop_last out"
        )
    return parameters_to_vector(gradient), first


def _checked_loss(loss: nn.Module | str) -> nn.Module:
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]()
    if isinstance(loss, nn.Module) and getattr(loss, "reduction", None) in ("mean", "sum"):
        return loss
    names = ", ".join(LOSSES)
    raise ValueError(f'loss must be a module with reduction "mean" or "sum", or one of {names}, but is {loss!r}')


def _checked_parameters(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = {f"{parameter.dtype} on {parameter.device}" for parameter in parameters}
    right = len(kinds) == 1 and parameters[0].dtype in (torch.float32, torch.float64)
    if not right:
        found = " and ".join(sorted(kinds)) or "none"
        raise ValueError(
            f"model must have parameters that require a gradient, of one device and one type, float32 or float64, "
            f"but has {found}"
        )
    return parameters


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, but is {value!r}")


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; each module is in its own again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """The loader may draw torch's random numbers: the program's own go on where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _counted(hessian: Any, total: int, shown: bool) -> Iterator[Product]:
    """Products with the Hessian, each a step of a progress bar."""
    from tqdm import tqdm  # noqa: PLC0415  (an extra)

    with tqdm(total=total, desc="Hessian products", disable=not shown) as bar:

        def product(vector: Tensor) -> Tensor:
            image: Tensor = hessian @ vector
            bar.update()
            return image

        yield product
