"""The class of the wrapped optimizer, with the averaging behind it: every method delegates."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grawa_hvd import checkpoint_tools
from grawa_hvd.checked import plain_number
from grawa_hvd.copies import copied
from grawa_hvd.owned import Owned
from grawa_hvd.report import OnRound, RoundReport
from grawa_hvd.settings import Settings
from grawa_hvd.step.intake import Intake
from grawa_hvd.step.local_step import LocalStep
from grawa_hvd.step.uncounted import warn_of_plain_steps, watched_methods
from grawa_hvd.transport.wire import Wire
from grawa_hvd.worker import Worker

# `hvd.broadcast_optimizer_state` steps a fresh optimizer once to give it state. It bypasses a wrapper, whose step would
# count and communicate on some ranks only, if the wrapper's class says it is of this module, and takes the class right
# above it for the wrapped one.
HOROVOD_MODULE = "horovod.torch.optimizer"


@functools.cache
def wrapper_of(wrapped: type[torch.optim.Optimizer]) -> Any:
    """A subclass of the wrapped optimizer's class, of the same name, whose instances average."""
    members = {name: value for name, value in vars(Averaged).items() if name not in ("__dict__", "__weakref__")}
    named = {"__qualname__": wrapped.__qualname__, "__module__": HOROVOD_MODULE, "__doc__": wrapped.__doc__}
    return type(wrapped.__name__, (wrapped,), {**watched_methods(wrapped), **members, **named, "_wrapped": wrapped})


def checked_passes(passes: int) -> int:
    """`backward_passes_per_step`, as `hvd.DistributedOptimizer` checks it."""
    passes = plain_number(passes)
    if isinstance(passes, bool) or not isinstance(passes, int):  # Horovod has no words for these
        raise ValueError(f"backward_passes_per_step must be an integer above 0, but is {passes!r}")
    if passes <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    return passes


class Averaged:
    """The members of every wrapper class.

    They are copied into a class that derives from the wrapped one alone, since Horovod calls the step of the class
    right above the wrapper's. So the wrapped class is named where a method of it is meant: `super()` is not at hand.
    """

    _wrapped: ClassVar[Any]
    param_groups: list[dict[str, Any]]
    state: Any
    defaults: dict[str, Any]
    # GradScaler would leave out the step on a rank whose gradients overflowed, and on that rank alone; an optimizer
    # that says this is stepped on every rank and handles the overflow itself.
    _step_supports_amp_scaling = True

    def __init__(self, *_: Any, **__: Any) -> None:
        """Refuse to be made otherwise than by `DistributedGrawaOptimizer`: by `type(optimizer)(params)`, or Horovod."""
        raise TypeError(
            f"this {self._wrapped.__name__} is distributed, and DistributedGrawaOptimizer alone makes such optimizers: "
            f"make a plain {self._wrapped.__name__}, and wrap that once"
        )

    def _adopt(self, optimizer: torch.optim.Optimizer, names: dict[Tensor, str], settings: Settings,
               wire: Wire, on_round: OnRound | None, fused: bool) -> None:  # fmt: skip
        """Take over a plain optimizer's parameters and state, which stay shared with it."""
        self._made_with = (names, settings, wire, on_round, fused)
        self.__dict__.update(optimizer.__dict__)
        # An LR scheduler made before the wrapping leaves a step there that is bound to the other object.
        self.__dict__.pop("step", None)
        scales = self.__dict__.pop("_step_supports_amp_scaling", False)
        self._synchronized, self._should_synchronize = False, True
        self._worker = Worker(Owned(self, names), wire, settings, on_round)
        intake = Intake(self._worker, settings.observes_steps)
        self._local_step = LocalStep(self._wrapped, self._worker, intake, fused, scales)
        self._transport = wire.transport
        wire.transport.attach(self)
        self._is_within, self._moves = False, 0  # of the methods that `watched_methods` gives
        warn_of_plain_steps(optimizer, self)

    def join_hook(self, **options: Any) -> Any:
        """What `torch.distributed.algorithms.Join` calls on a rank that has no more data; over torch.distributed."""
        return self._transport.join_hook(self._worker.follow)

    @property
    def join_device(self) -> torch.device:
        """Where the parameters are, for `Join`."""
        return next((p.device for group in self.param_groups for p in group["params"]), torch.device("cpu"))

    @property
    def join_process_group(self) -> Any:
        """The group of workers, for `Join`."""
        return self._transport.group  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        """Nothing: gradients are a worker's own. Here for scripts that clip between backward and step."""
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """Goes around `step()` after `synchronize()`, as in Horovod; averaging goes on."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Set the number of backward passes whose local sum one step consumes."""
        self.backward_passes_per_step = checked_passes(passes)

    def step(self, *arguments: Any, **named: Any) -> Any:
        """One local step of the wrapped optimizer and, every `period` steps, a round.

        Args:
            arguments, named: those of the wrapped optimizer's `step`, as a closure.

        Raises:
            RuntimeError: with other workers, while a CUDA graph is captured, whose replays would not count, inside
                `consensus()`, and in the scores callable.
        """
        if self._synchronized and self._should_synchronize:
            warnings.warn(
                "optimizer.step() called without optimizer.skip_synchronize() context after "
                "optimizer.synchronize(). Gradients are local here, so nothing is sent twice, but the same "
                "script under hvd.DistributedOptimizer would reduce them twice.",
                stacklevel=2,
            )
        self._synchronized = False
        if checkpoint_tools.make_state(self):
            return self._wrapped.step(self, *arguments, **named)
        self._is_within, self._moves = True, 0
        try:
            return self._local_step(self, *arguments, **named)
        finally:
            self._is_within = False

    step.hooked = True  # type: ignore[attr-defined]  # the step hooks run within, once

    def report(self, loss: float | Tensor | None = None, accuracy: float | Tensor | None = None,
               samples: float | Tensor | None = None) -> None:  # fmt: skip
        """Tell the policy how this worker is doing; means since the last round travel in the next one.

        Args:
            loss: a training loss, any number.
            accuracy: from 0 to 1.
            samples: number of samples processed by this step, at least 0.

        Raises:
            ValueError: if a value is out of its range or not one number.
        """
        self._worker.member.reported.add(loss=loss, accuracy=accuracy, samples=samples)

    def round_now(self) -> None:
        """A round now, as at an epoch's end, of the whole model; a new cycle of `period` steps begins after it.

        Collective. Rounds under way are finished first, and this one is over when it returns. Where no rank has made a
        step since the last cycle ended, nothing is done.

        Raises:
            RanksOutOfStepError: on every rank, if some came to a round that was due, or to `consensus()`.
        """
        self._worker.round_now()

    def consensus(self, weights: Literal["equal", "last"] = "equal") -> AbstractContextManager[None]:
        """Inside the block the parameters are the mean of all workers; after it, each worker's own again.

        Collective: every rank enters. Evaluate and write checkpoints inside: the mean is the trained model. A worker
        with NaN or Inf in its parameters is left out of the mean. Changes made to parameters inside are lost. Buffers
        (BatchNorm statistics) are the plain mean too, where `buffers=` was given.

        Args:
            weights: "equal", or "last": each layer by the weights of its last round; equal before the first, after a
                checkpoint of another number of workers, and after the layers have changed.

        Raises:
            ValueError: if `weights` is something else; on every rank, if it differs between ranks.
            RanksOutOfStepError: on every rank, if some came to a round.
            AllWorkersDivergedError: on every rank, if no worker has finite parameters.
        """
        return self._worker.consensus(weights)

    def recenter(self) -> None:
        """Forget the centre, its momentum and the norm estimates, after the model was put elsewhere.

        To be called on every rank, as after `model.load_state_dict` of the best weights so far: else the old centre
        pulls the model back. Nothing is sent; the next step meets the other ranks anew, and there the centre starts as
        in a new run. The counts of steps and rounds go on.

        Raises:
            RanksOutOfStepError: on every rank, at the next step or round, if only some have called it.
        """
        self._worker.recenter()

    @property
    def rounds(self) -> int:
        """Completed rounds."""
        return self._worker.completed

    @property
    def last_round(self) -> RoundReport | None:
        """What the last round did; None before the first."""
        return self._worker.last_round

    @property
    def center(self) -> dict[str, Tensor] | None:
        """Parameter name → its part of the last centre, to read; None before the first round."""
        return self._worker.center

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, and under the key "grawa" what a bitwise continuation of the averaging needs."""
        state: dict[str, Any] = self._wrapped.state_dict(self)
        averaging = self._worker.state_dict(self._numbers())
        return state if averaging is None else checkpoint_tools.joined(state, averaging)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict` of this class, or of the plain torch optimizer: then the averaging starts afresh."""
        plain, averaging = checkpoint_tools.split(state_dict)
        self._wrapped.load_state_dict(self, plain)
        if averaging is None and self._worker.member.steps:
            warnings.warn(
                "the loaded state is a plain optimizer's, or from before the first step: the averaging starts afresh, "
                "without a centre, norm estimates or counters",
                stacklevel=2,
            )
        self._synchronized, self._should_synchronize = False, True
        self._worker.load_state_dict(averaging, self._numbers())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be pickled: other processes are no part of a file."""
        raise TypeError(
            f"this distributed {self._wrapped.__name__} cannot be pickled, alone or within a trainer or scheduler: it "
            "holds what connects it to the other ranks. Save optimizer.state_dict(), and load that into a new one"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the same workers' optimizer, as plain torch makes one: parameters are copied unless in `memo`."""
        return copied(self, memo)

    def _numbers(self) -> dict[int, int]:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        return {id(parameter): number for number, parameter in enumerate(parameters)}
