"""Elastic Horovod: workers come and go, and what those have learned that stay is averaged, not thrown away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.elastic.state import ModelStateHandler, OptimizerStateHandler
from torch import Tensor

from grawa_hvd.checkpoint_tools import STATE_KEY
from grawa_hvd.rounds.member_state import for_another_worker
from grawa_hvd.transport.horovod_links import Link, hang_up, links_between_workers


class TorchState(hvd.elastic.TorchState):  # type: ignore[misc]
    """`hvd.elastic.TorchState` for workers whose models differ between rounds.

    Takes the same arguments. Horovod's own sends the model of rank 0 to all, and the steps that the other workers have
    made since the last round are lost. With this one, after a change of workers:

    - Models, with their floating-point buffers, become the plain mean over the workers that are furthest in the run
      and finite. At the start of a run, when none has made a step, they become those of rank 0.
    - Workers that have made part of the run keep their optimizer's state and norm estimates. New ones take over those
      of the first of the furthest workers, with its centre and its counters, but not its norm estimates.
    - Samplers are Horovod's matter. Other attributes become those of the first of the furthest workers.
    - What all have then is committed.

    A worker that is told of a failure goes back to its last commit first, and closes its connections to the others,
    which learn of the failure in that way. Workers that leave in an orderly way take with them the steps that they have
    made since the last round.
    """

    _links: Iterable[Link] = ()

    def restore(self) -> None:
        """Go back to the last commit after a failure, and let the other workers learn of it."""
        hang_up(self._links)
        super().restore()

    def sync(self) -> None:
        """Let all workers go on together; a collective, which `hvd.elastic.run` calls."""
        self._links = links_between_workers()
        ahead = self._ahead()
        for name, handler in self._handlers.items():
            if isinstance(handler, ModelStateHandler):
                _average_(handler.value, ahead, f"grawa.elastic.{name}")
            elif isinstance(handler, OptimizerStateHandler):
                _hand_over(handler.value, ahead, f"grawa.elastic.{name}")
            else:
                handler.sync()
        attributes = {name: getattr(self, name) for name in self._saved_state}
        for name, value in hvd.broadcast_object(attributes, ahead[0], "grawa.elastic.attributes").items():
            setattr(self, name, value)
        self.save()

    def _ahead(self) -> list[int]:
        """The ranks that are furthest in the run, and finite if any of those is; rank 0 if none has made a step."""
        values = [handler.value for handler in self._handlers.values()]
        steps = sum(value._worker.member.steps for value in values if hasattr(value, "_worker"))
        finite = all(
            bool(tensor.isfinite().all())
            for value in values
            if isinstance(value, torch.nn.Module)
            for tensor in value.parameters()
        )
        places = torch.zeros(hvd.size(), 2, dtype=torch.float64, device="cpu")
        places[hvd.rank()] = torch.tensor([steps, finite], dtype=torch.float64, device="cpu")
        steps_of, finite_of = hvd.allreduce(places, op=hvd.Sum, name="grawa.elastic.places").unbind(dim=1)
        if not steps_of.any():
            return [0]
        furthest = steps_of == steps_of.max()
        chosen = furthest & (finite_of > 0)
        ranks: list[int] = (chosen if chosen.any() else furthest).nonzero().flatten().tolist()
        return ranks


def _average_(model: torch.nn.Module, ahead: list[int], name: str) -> None:
    """Let a model be the mean over some workers; a collective of all. What is no number with a point is the first's."""
    travelling: list[tuple[Tensor, Tensor, int]] = []
    for number, tensor in enumerate(_tensors(model)):
        if not tensor.is_floating_point():
            travelling.append((tensor, tensor, hvd.broadcast_async_(tensor, ahead[0], f"{name}.{number}")))
            continue
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        sum_ = tensor.detach().to(wide, copy=True) if hvd.rank() in ahead else torch.zeros_like(tensor, dtype=wide)
        travelling.append((tensor, sum_, hvd.allreduce_async_(sum_, name=f"{name}.{number}", op=hvd.Sum)))
    with torch.no_grad():
        for tensor, sum_, handle in travelling:
            hvd.synchronize(handle)
            if sum_ is not tensor:
                tensor.copy_(sum_ / len(ahead))


def _tensors(model: torch.nn.Module) -> Iterator[Tensor]:
    return (value for value in model.state_dict().values() if isinstance(value, Tensor))


def _hand_over(optimizer: Any, ahead: list[int], name: str) -> None:
    """Give the first worker's state to those that are not as far; a collective of all."""
    state = optimizer.state_dict() if hvd.rank() == ahead[0] else None
    if state is not None and STATE_KEY in state:
        state = {**state, STATE_KEY: for_another_worker(state[STATE_KEY])}
    state = hvd.broadcast_object(state, ahead[0], name)
    if hvd.rank() not in ahead:
        optimizer.load_state_dict(state)
