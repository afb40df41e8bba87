"""The drop-in for `hvd.DistributedOptimizer`: the class of the wrapped optimizer, with the averaging behind it."""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor

from grawa_hvd import amp
from grawa_hvd.averaging import Averaging
from grawa_hvd.capture import refuse_captured_step
from grawa_hvd.communicator import Average, Communicator, global_process_set
from grawa_hvd.compression import Compression
from grawa_hvd.fused import ALGORITHMS, FusedStep
from grawa_hvd.layers import Groups, unnamed, validated_names
from grawa_hvd.protocol import GrawaOptimizer
from grawa_hvd.report import RoundReport
from grawa_hvd.scores import Scores
from grawa_hvd.settings import Settings, validated_settings
from grawa_hvd.worker import Worker

# `hvd.broadcast_optimizer_state` steps a fresh optimizer once to give it state. It bypasses a wrapper, whose step would
# count and communicate on some ranks only, if the wrapper's class says it is of this module, and takes the class right
# above it for the wrapped one.
HOROVOD_MODULE = "horovod.torch.optimizer"
STATE_KEY = "grawa"


@functools.cache
def _wrapper_of(wrapped: Any) -> Any:
    """A subclass of the wrapped optimizer's class, of the same name, whose instances average."""

    class Wrapper(wrapped):  # type: ignore[misc]
        # GradScaler would leave out the step on a rank whose gradients overflowed, and on that rank alone; an
        # optimizer that says this is stepped on every rank and handles the overflow itself.
        _step_supports_amp_scaling = True

        def _adopt(self, optimizer: torch.optim.Optimizer, names: dict[Tensor, str], settings: Settings,
                   communicator: Communicator, on_round: Callable[[RoundReport], None] | None,
                   fused: bool) -> None:  # fmt: skip
            self.__dict__.update(optimizer.__dict__)
            # An LR scheduler made before the wrapping leaves a step there that is bound to the other object.
            self.__dict__.pop("step", None)
            self._wrapped_scales = self.__dict__.pop("_step_supports_amp_scaling", False)
            self._parameter_names = names
            self._owned: list[Tensor] = []
            self._owned_names: dict[Tensor, str] = {}
            self._fused = FusedStep(wrapped) if fused and wrapped in ALGORITHMS else None
            self._synchronized, self._should_synchronize = False, True
            self._worker = Worker(self._current_names, self._reset_state, communicator, settings, on_round)

        def _current_names(self) -> dict[Tensor, str]:
            """Names of all parameters, of those too that `add_param_group` brought since."""
            owned = [parameter for group in self.param_groups for parameter in group["params"]]
            if len(owned) != len(self._owned) or not all(map(operator.is_, owned, self._owned)):
                added = {p: name for p, name in unnamed(self.param_groups) if p not in self._parameter_names}
                known, is_owned = {**self._parameter_names, **added}, set(owned)
                self._owned, self._owned_names = owned, {p: name for p, name in known.items() if p in is_owned}
            return self._owned_names

        def _reset_state(self) -> None:
            """State as new; some optimizers (Adagrad) make it when they are constructed, most at their first step."""
            self.state.clear()
            no_arguments: dict[str, Any] = {}
            for arguments in (self.defaults, no_arguments):
                # Constructors may not take what their defaults hold, or want more. An error on this rank alone would
                # leave the others waiting, and nearly every optimizer's next step fills state that is empty.
                with suppress(Exception):
                    self.state.update(wrapped([{**group} for group in self.param_groups], **arguments).state)
                    return

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
            self.backward_passes_per_step = _checked_passes(passes)

        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            """One local step of the wrapped optimizer and, every `period` steps, a round.

            Raises:
                RuntimeError: while a CUDA graph is captured, if there are other workers: replays would not count.
            """
            if self._synchronized and self._should_synchronize:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). Gradients are local here, so nothing is sent twice, but the same "
                    "script under hvd.DistributedOptimizer would reduce them twice.",
                    stacklevel=2,
                )
            self._synchronized = False
            is_active = self._worker.active
            if is_active:
                refuse_captured_step(self.param_groups)
            self._worker.before_step()
            if self._fused is None or not is_active:
                result = self._torch_step(super().step, closure)
            else:
                result = self._hooked_step() if closure is None else self._hooked_step(closure)
            self._worker.count_step()
            return result

        step.hooked = True  # type: ignore[attr-defined]  # the step hooks run below, once

        @torch.optim.Optimizer.profile_hook_step
        def _hooked_step(self, closure: Callable[[], Any] | None = None) -> Any:
            """A step within the step hooks: by the fused kernels, or by torch where they cannot."""
            result = None
            if closure is not None:
                with torch.enable_grad():
                    result = closure()
            fused = self._fused
            if fused is None or not self._worker.fused_step(fused, self):
                self._torch_step(functools.partial(_without_hooks(wrapped.step), self), None)
            return result

        def _torch_step(self, step: Callable[[Any], Any], closure: Callable[[], Any] | None) -> Any:
            """A step of the wrapped class, and what the worker does after it."""
            worker = self._worker
            if getattr(self, "found_inf", None) is None:
                result = step(closure)
                worker.take_in()
            elif self._wrapped_scales:
                # Without any gradient GradScaler's sum over devices is the integer 0.
                overflow = torch.as_tensor(self.found_inf)
                result = step(closure)
                worker.take_in(found_inf=overflow)
            else:
                # GradScaler would have left the step out where gradients overflowed; it counts on every rank.
                scale, found_inf = amp.take_scale(self)
                skipped = amp.overflowed(found_inf)
                result = None
                if not skipped:
                    amp.unscale_(self, scale)
                    result = step(closure)
                worker.take_in(consumed=not skipped)
            return result

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
            self._worker.reported.add(loss=loss, accuracy=accuracy, samples=samples)

        def consensus(self) -> AbstractContextManager[None]:
            """Inside the block the parameters are the plain mean of all workers; after it, each worker's own again.

            Collective: every rank enters. Evaluate and write checkpoints inside: the mean is the trained model. A
            worker with NaN or Inf in its parameters is left out of the mean. Changes made to parameters inside are
            lost. Buffers (BatchNorm statistics) are not averaged.

            Raises:
                AllWorkersDivergedError: on every rank, if no worker has finite parameters.
            """
            return self._worker.consensus()

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
            state: dict[str, Any] = super().state_dict()
            averaging = self._worker.state_dict(self._numbers())
            return state if averaging is None else {**state, STATE_KEY: averaging}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Load a `state_dict` of this class, or of the plain torch optimizer: then the averaging starts afresh."""
            plain = {key: value for key, value in state_dict.items() if key != STATE_KEY}
            super().load_state_dict(plain)
            averaging = state_dict.get(STATE_KEY)
            if averaging is None and self._worker.steps:
                warnings.warn(
                    "the loaded state is a plain optimizer's: the averaging starts afresh, without a centre, norm "
                    "estimates or counters",
                    stacklevel=2,
                )
            self._synchronized, self._should_synchronize = False, True
            self._worker.load_state_dict(averaging, self._numbers())

        def _numbers(self) -> dict[int, int]:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            return {id(parameter): number for number, parameter in enumerate(parameters)}

    Wrapper.__name__, Wrapper.__qualname__ = wrapped.__name__, wrapped.__qualname__
    Wrapper.__module__ = HOROVOD_MODULE
    return Wrapper


def DistributedGrawaOptimizer(  # noqa: N802  (a class to its users, as in Horovod)
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: Any = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Groups = None,
    sparse_as_dense: bool = False,
    process_set: Any = global_process_set,
    *,
    averaging: str | Averaging = "lgrawa",
    period: int = 32,
    pull: float = 0.5,
    proximity: float = 0.01,
    outer_momentum: float = 0.0,
    scores: str | Callable[[], Any] | Scores = "local",
    layers: str = "parameter",
    overlap: int = 0,
    fragments: int = 1,
    local_period: int | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
    fused: bool = True,
) -> GrawaOptimizer:
    """Wrap an optimizer so that workers train on their own and average their models every `period` steps.

    Takes the place of `hvd.DistributedOptimizer`. The result is an instance of the wrapped optimizer's class and
    shares its parameter groups and state. Evaluate and write checkpoints inside `optimizer.consensus()`.

    Args:
        optimizer: any torch.optim.Optimizer.
        named_parameters: names of the parameters, usually `model.named_parameters()`; they order the layers.
        compression: what the model is turned into while it travels, e.g. `hvd.Compression.fp16`; not bfloat16.
        backward_passes_per_step: backward passes whose local sum one step consumes, at least 1.
        op: `hvd.Average`; others have no meaning for models.
        gradient_predivide_factor: 1.0; gradients are not reduced.
        num_groups: old name of `groups`.
        groups: the messages of a round: how many, or lists of parameters that travel together.
        sparse_as_dense: accepted; gradients do not travel.
        process_set: the processes that average with each other; others train alone.
        averaging: the policy: "lgrawa", "mgrawa", "grawa", "uniform", or an object from `grawa_hvd.averaging`.
        period: τ, local steps from round to round, at least 1.
        pull: λ, how far a round moves a worker toward the centre, from 0 to 1.
        proximity: μ; each local step moves the worker μ/τ of the way to the last centre; from 0 to the period.
        outer_momentum: η of the centre over rounds, at least 0 and below 1.
        scores: "local": norms of the gradients that training uses. A callable that runs forward and backward on a
            fresh batch: norms of that gradient. Or an object from `grawa_hvd.scores`.
        layers: what has a weight of its own: each "parameter" tensor, or the tensors of a "module" together.
        overlap: k; a round is started after step t, training goes on, and after step t + k each worker moves by
            λ·(c − x_t). From 0 (a round is waited for) to period − 1. Needs twice the memory of a round besides.
        fragments: F; the layers in F parts of like size, each with a round of its own every `period` steps, staggered:
            1/F of the bytes at a time. From 1 to the period and the number of layers.
        local_period: τ_l; the ranks of one host average among themselves every so many steps too, by the same policy.
            Below the period; None for never. Needs `hvd.init(process_sets="dynamic")`; every rank wraps its optimizer.
        on_round: called on every rank with the report of each completed round.
        fused: let one kernel make the whole local step where the wrapped optimizer is exactly torch.optim.SGD or AdamW
            and its settings allow it: the same update to rounding, with its state in torch's own format.

    Raises:
        ValueError: naming the argument that is out of range; and on the first step, on every rank, if the ranks'
            models or settings differ.

    Source: Dimlioglu & Choromanska, "GRAWA: Gradient-based Weighted Averaging for Distributed Training of Deep Learning
    Models", AISTATS 2024: algorithms 1 and 2, appendix G for `scores="local"`.
    """
    if op != Average:
        raise ValueError(f"op must be hvd.Average, but is {op!r}: models are averaged here, gradients are not reduced")
    if gradient_predivide_factor != 1.0:
        raise ValueError(
            f"gradient_predivide_factor must be 1.0, but is {gradient_predivide_factor!r}: gradients are not reduced"
        )
    if num_groups != 0:
        warnings.warn("num_groups is the old name of groups", DeprecationWarning, stacklevel=2)
        groups = num_groups if groups is None else groups
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, but is a {type(optimizer).__name__}")
    if type(optimizer).__module__ == HOROVOD_MODULE:
        raise ValueError(
            f"optimizer must be a plain torch optimizer, but this {type(optimizer).__name__} is distributed"
        )
    passes = _checked_passes(backward_passes_per_step)
    settings = validated_settings(
        averaging, period, pull, proximity, outer_momentum, scores, layers, groups, overlap, fragments, local_period
    )
    if on_round is not None and not callable(on_round):
        raise ValueError(f"on_round must be callable, but is {on_round!r}")
    if layers == "module" and named_parameters is None:
        raise ValueError('layers="module" needs named_parameters: without names no module can be told from another')
    names = validated_names(named_parameters, optimizer.param_groups)
    wrapped: Any = type(optimizer)
    wrapper = _wrapper_of(wrapped)
    result = wrapper.__new__(wrapper)
    result._adopt(optimizer, names, settings, Communicator(process_set, compression), on_round, fused)
    result.backward_passes_per_step = passes
    return cast(GrawaOptimizer, result)


def _without_hooks(step: Any) -> Any:
    """A class's `step` without the hooks that torch wraps around it."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step


def _checked_passes(passes: int) -> int:
    if passes <= 0:
        raise ValueError("backward_passes_per_step must be > 0")
    return passes
