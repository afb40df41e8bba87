"""A forward and backward of the user's aside from training: gradients and random numbers are afterwards as before."""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def aside(parameters: list[Tensor], number: int) -> Iterator[None]:
    """Inside the block `.grad` is what the block makes, and random numbers are other ones than training will draw.

    After it, `.grad` of every tensor that the block's backward reached is what it was, those of other optimizers too,
    and so are the generators of torch, Python and NumPy.

    Args:
        parameters: whose `.grad` is None when the block begins, on one device.
        number: that of the block: another number draws other random numbers.
    """
    with _random_numbers_aside(parameters[0].device if parameters else torch.device("cpu"), number):
        kept = _KeptGradients(parameters)
        try:
            with kept:
                yield
        finally:
            kept.put_back()


class _KeptGradients(TorchFunctionMode):
    """Keeps the gradients of the leaves that a backward is about to reach, and takes them away."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._before: dict[int, tuple[Tensor, Tensor | None]] = {}
        self._keep(parameters)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.Tensor.backward, torch.autograd.backward):
            tensors = args[0] if args else (kwargs or {}).get("tensors", ())
            self._keep(_leaves((tensors,) if isinstance(tensors, Tensor) else tensors))
        return func(*args, **(kwargs or {}))

    def _keep(self, leaves: Iterable[Tensor]) -> None:
        for leaf in leaves:
            if id(leaf) not in self._before:
                self._before[id(leaf)] = (leaf, leaf.grad)
                leaf.grad = None

    def put_back(self) -> None:
        """Let all have the gradients that they had."""
        for leaf, gradient in self._before.values():
            leaf.grad = gradient


def _leaves(roots: Iterable[Tensor]) -> list[Tensor]:
    """The tensors into whose `.grad` a backward from some roots adds."""
    nodes = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen, leaves = set(nodes), []
    while nodes:
        node = nodes.pop()
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        new = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= new
        nodes += new
    return leaves


@contextmanager
def _random_numbers_aside(device: torch.device, number: int) -> Iterator[None]:
    on_device = device.type not in ("cpu", "meta")
    numpy = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), numpy.random.get_state() if numpy else None
    # By the state and the number alone, so that a run that is continued draws what it would have drawn.
    seed = zlib.crc32(bytes(torch.get_rng_state().tolist()), number)
    devices, kind = ([device.index or 0], device.type) if on_device else ([], "cuda")
    with torch.random.fork_rng(devices, device_type=kind):
        torch.default_generator.manual_seed(seed)
        if on_device:
            torch.get_device_module(device).manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
