"""The local step in one pass over memory: the wrapped optimizer's update, the gradients' norms, the pull."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from grawa_hvd import ops
from grawa_hvd.model.layout import Layout
from grawa_hvd.ops import AdamwHyperparameters, SgdHyperparameters
from grawa_hvd.ops.reference import NO_GRADIENT
from grawa_hvd.rounds.center import Center
from grawa_hvd.rounds.round import Rooms
from grawa_hvd.step import amp

ALGORITHMS: dict[type, Literal["sgd", "adamw"]] = {torch.optim.SGD: "sgd", torch.optim.AdamW: "adamw"}


class FusedStep:
    """Local steps of exactly torch.optim.SGD or AdamW by one kernel, wherever that can do what torch would.

    State stays in the optimizer's `state`, in torch's format; the step that makes it is torch's own.

    Args:
        optimizer_class: the class of the wrapped optimizer, one of `ALGORITHMS`.
    """

    def __init__(self, optimizer_class: type) -> None:
        self._algorithm = ALGORITHMS[optimizer_class]
        self._names: dict[Tensor, str] | None = None
        self._params: list[Tensor] = []
        self._table: ops.StepTable | None = None
        self._targets: tuple[Layout, Center, int] | None = None
        self._norms = torch.empty(0)

    def step(
        self, optimizer: Any, names: dict[Tensor, str], rooms: Rooms, pull: float, with_norms: bool
    ) -> tuple[bool, Tensor | None]:
        """One local step of all parameters.

        Args:
            optimizer: has `param_groups` and `state`, and `grad_scale` and `found_inf` where GradScaler left them.
            names: of its parameters; the same object while its groups hold the same.
            rooms: layout, centre and puller of the averaged parameters.
            pull: toward the centre, from 0 to 1.
            with_norms: whether norms are wanted.

        Returns:
            Whether the step was made: if not, nothing has changed and torch must make it. And the gradients' norms as
            in `Layout.grad_norms`, −1 throughout after an overflow.
        """
        layout, center = rooms.layout, rooms.center
        hyperparameters: list[Any] = [_hyperparameters(self._algorithm, group) for group in optimizer.param_groups]
        if None in hyperparameters:
            return False, None
        scale = _on(layout.device, getattr(optimizer, "grad_scale", None))
        found_inf = _on(layout.device, getattr(optimizer, "found_inf", None))
        if found_inf is not None and _counts_on_host(optimizer.state):
            # A kernel cannot say to the host whether this step is one to count. So the host asks, as GradScaler would.
            if amp.overflowed(found_inf):
                if pull:
                    rooms.puller.pull_(pull)
                return True, None
            found_inf = None
        table = self._prepare(names, optimizer.param_groups, layout, center)
        norms = self._norms if with_norms else None
        made = table.step(optimizer.state, hyperparameters, pull, norms, scale, found_inf)
        return made, layout.by_layer(self._norms) if made and with_norms else None

    def let_go(self) -> None:
        """Hold no parameter until the next step."""
        self._names = self._table = self._targets = None
        self._params = []

    def _prepare(
        self, names: dict[Tensor, str], param_groups: list[dict[str, Any]], layout: Layout, center: Center
    ) -> ops.StepTable:
        """Build what is looked up once, anew where parameters, layout or centre are others."""
        laid_out = self._targets is not None and self._targets[0] is layout
        if self._table is None or not laid_out or names is not self._names:
            self._names = names
            self._params = [param for group in param_groups for param in group["params"]]
            groups = [number for number, group in enumerate(param_groups) for _ in group["params"]]
            self._table = ops.StepTable(self._algorithm, self._params, groups)
            self._targets = None
        targets = (layout, center, center.version)
        if self._targets is None or self._targets != targets:
            self._set_targets(self._table, layout, center)
            self._targets = targets
        return self._table

    def _set_targets(self, table: ops.StepTable, layout: Layout, center: Center) -> None:
        row_of = {id(parameter): row for row, parameter in enumerate(layout.parameters)}
        parts, strides = center.parts(), layout.table.wire_strides
        rows = [row_of.get(id(parameter), -1) for parameter in self._params]
        table.set_targets(
            rows,
            [None if row < 0 else parts[row] for row in rows],
            [
                parameter.stride() if row < 0 else strides[row]
                for row, parameter in zip(rows, self._params, strict=True)
            ],
        )
        is_wide = any(parameter.dtype == torch.float64 for parameter in layout.parameters)
        dtype = torch.float64 if is_wide else torch.float32
        self._norms = torch.full((len(layout.parameters),), NO_GRADIENT, dtype=dtype, device=layout.device)


def _hyperparameters(algorithm: str, group: dict[str, Any]) -> SgdHyperparameters | AdamwHyperparameters | None:
    """Those of a param group; None if a setting is in use that the kernels do not have."""
    if group["differentiable"] or group.get("amsgrad"):
        return None
    if algorithm == "sgd":
        return SgdHyperparameters(
            group["lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"],
            group["maximize"],
        )  # fmt: skip
    beta1, beta2 = group["betas"]
    if isinstance(beta1, Tensor) or isinstance(beta2, Tensor):
        return None
    return AdamwHyperparameters(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["maximize"])


def _counts_on_host(state: dict[Tensor, Any]) -> bool:
    """Whether steps are counted in host memory, as in torch's AdamW unless it is `capturable` or `fused`."""
    first: dict[str, Any] = next(iter(state.values()), {})
    count = first.get("step")
    return isinstance(count, Tensor) and count.is_cpu


def _on(device: torch.device, number: Tensor | float | None) -> Tensor | None:
    # Without any gradient GradScaler's sum over devices is the integer 0: nothing has overflowed.
    if not isinstance(number, Tensor):
        return None
    return number.to(device, torch.float32, non_blocking=device.type != "cpu")
