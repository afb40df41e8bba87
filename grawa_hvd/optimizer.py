"""The drop-in for `hvd.DistributedOptimizer`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

from grawa_hvd.averaging.policy import Mix
from grawa_hvd.checked import is_same
from grawa_hvd.model.cut import Groups
from grawa_hvd.model.names import OwnedNames, refuse_complex, refuse_sharded, validated_names
from grawa_hvd.protocol import GrawaOptimizer
from grawa_hvd.report import OnRound
from grawa_hvd.rounds.outer import OuterFactory
from grawa_hvd.rounds.schedule import Period
from grawa_hvd.scores import Scores
from grawa_hvd.settings import Settings
from grawa_hvd.step.anchored import warn_of_anchored
from grawa_hvd.transport.choose import chosen_transport
from grawa_hvd.transport.wire import Compression, Wire
from grawa_hvd.wrapper import HOROVOD_MODULE, checked_passes, wrapper_of


def DistributedGrawaOptimizer(  # noqa: N802  (a class to its users, as in Horovod)
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: Any = Compression.none,
    backward_passes_per_step: int = 1,
    op: Any = None,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Groups = None,
    sparse_as_dense: bool = False,
    process_set: Any = None,
    *,
    process_group: Any = None,
    device_mesh: Any = None,
    averaging: str | Mix = "uniform",
    period: Period = 32,
    pull: float = 0.5,
    proximity: float = 0.01,
    warmup_steps: int = 0,
    outer_momentum: float = 0.0,
    outer_optimizer: OuterFactory | None = None,
    scores: str | Callable[[], Any] | Scores = "local",
    layers: str = "parameter",
    overlap: int = 0,
    fragments: int = 1,
    local_period: int | None = None,
    on_round: OnRound | None = None,
    fused: bool = True,
    optimizer_state: str = "keep",
    optimizer_state_period: int = 1,
    buffers: Any = "keep",
) -> GrawaOptimizer:
    """Wrap an optimizer so that workers train on their own and average their models every `period` steps.

    Takes the place of `hvd.DistributedOptimizer`. The result is an instance of the wrapped optimizer's class and
    shares its parameter groups and state. Evaluate and write checkpoints inside `optimizer.consensus()`.

    Args:
        optimizer: any torch.optim.Optimizer.
        named_parameters: names of the parameters, usually `model.named_parameters()`; they order the layers.
        compression: what the model is turned into while it travels, e.g. `hvd.Compression.fp16`; see `Compression`.
        backward_passes_per_step: backward passes whose local sum one step consumes, at least 1.
        op: `hvd.Average`, or torch's `ReduceOp.AVG`; others have no meaning for models.
        gradient_predivide_factor: 1.0; gradients are not reduced.
        num_groups: old name of `groups`.
        groups: the messages of a round: how many, or lists of parameters that travel together.
        sparse_as_dense: accepted; gradients do not travel.
        process_set: Horovod's processes that average with each other, all of them if None; others train alone.
        process_group: torch.distributed's group instead. With neither, Horovod is used if it is initialised, else
            torch.distributed's default group.
        device_mesh: the same by a torch mesh of one dimension.
        averaging: the policy: "uniform", "lgrawa", "mgrawa", "grawa", or another name or object of
            `grawa_hvd.averaging`.
        period: τ, local steps from round to round, at least 1. Or a function of a worker's progress (`steps`, `rounds`)
            that is asked when a cycle begins: what the rank says that is furthest holds for all. See `grawa_hvd.QSR`.
        pull: λ, how far a round moves a worker toward the centre, from 0 to 1.
        proximity: μ; each local step moves the worker μ/τ of the way to the last centre; from 0 to the period.
        warmup_steps: steps at the start after each of which all workers become their plain mean (post-local SGD).
        outer_momentum: η of the centre over rounds, at least 0 and below 1.
        outer_optimizer: a function of parameters that returns a torch optimizer: it steps the centre, whose gradient is
            the centre minus the average. The centre starts at the parameters of the first step. With
            `averaging="uniform"`, `pull=1.0` and SGD with Nesterov this is DiLoCo. Not together with `outer_momentum`.
        scores: "local": norms of the gradients that training uses. A callable that runs forward and backward on a
            fresh batch: norms of that gradient. Or an object from `grawa_hvd.scores`.
        layers: what has a weight of its own: each "parameter" tensor, or the tensors of a "module" together.
        overlap: k; a round is started after step t, training goes on, and after step t + k each worker moves by
            λ·(c − x_t). From 0 (a round is waited for) to period − 1. Needs twice the memory of a round besides.
        fragments: F; the layers in F parts of like size, each with a round of its own every `period` steps, staggered:
            1/F of the bytes at a time. From 1 to the period and the number of layers.
        local_period: τ_l; the ranks of one host average among themselves every so many steps too, by the same policy.
            Below the period; None for never. Every rank wraps its optimizer. Horovod needs
            `hvd.init(process_sets="dynamic")` for it, torch.distributed all of its processes in one group.
        on_round: called on every rank with the report of each completed round.
        fused: let one kernel make the whole local step where the wrapped optimizer is exactly torch.optim.SGD or AdamW
            and its settings allow it: the same update to rounding, with its state in torch's own format.
        optimizer_state: "keep" leaves momentum and the like each worker's own. With "average" a round sets them to
            their mean over the workers (not with `overlap`). With "reset" a round makes them anew.
        optimizer_state_period: so every how many rounds of the whole model, at least 1; warm-up steps average every
            time and reset never.
        buffers: "keep" leaves them each worker's own. Given the model, or `model.named_buffers()`, a round sets the
            floating-point ones to their mean over the workers, and running variances to the pooled one. So does
            `consensus()` inside its block.

    Raises:
        ValueError: naming the argument that is out of range; and on the first step, on every rank, if the ranks'
            models or settings differ.

    Source: Dimlioglu & Choromanska, "GRAWA: Gradient-based Weighted Averaging for Distributed Training of Deep Learning
    Models", AISTATS 2024: algorithms 1 and 2, appendix G for `scores="local"`.
    """
    if not isinstance(gradient_predivide_factor, (int, float)) or gradient_predivide_factor != 1.0:
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
    passes = checked_passes(backward_passes_per_step)
    settings = Settings(
        averaging, period, pull, proximity, outer_momentum, outer_optimizer, scores, layers, groups, overlap, fragments,
        local_period, warmup_steps, optimizer_state, optimizer_state_period, buffers,
    )  # fmt: skip
    if on_round is not None and not callable(on_round):
        raise ValueError(f"on_round must be callable, but is {on_round!r}")
    if layers == "module" and named_parameters is None:
        raise ValueError('layers="module" needs named_parameters: without names no module can be told from another')
    names = validated_names(named_parameters, optimizer.param_groups)
    refuse_sharded(names)
    refuse_complex(OwnedNames(optimizer, names).current())
    warn_of_anchored(optimizer)
    transport = chosen_transport(process_set, process_group, device_mesh)
    if op is not None and not is_same(op, transport.average):
        raise ValueError(
            f"op must be {transport.average_name}, but is {op!r}: models are averaged here, gradients are not reduced"
        )
    wrapped: Any = type(optimizer)
    wrapper = wrapper_of(wrapped)
    result = wrapper.__new__(wrapper)
    result._adopt(optimizer, names, settings, Wire(transport, compression), on_round, fused)
    result.backward_passes_per_step = passes
    return cast(GrawaOptimizer, result)
