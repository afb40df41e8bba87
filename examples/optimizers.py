"""The optimizers of the training scripts: model averaging, or gradient sharing; with SAM around either, if asked."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import grawa_hvd
from grawa_hvd.averaging import POLICIES, Averaging

if TYPE_CHECKING:
    from peers import Meter, Peers

Loss = Callable[[nn.Module], Tensor]
OnRound = Callable[[grawa_hvd.RoundReport], None]
Factory = Callable[[Iterable[Any]], torch.optim.Optimizer]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `distribute` goes by, with the defaults of the library."""
    add = parser.add_argument_group("how workers share what they learn").add_argument
    add("--optimizer", choices=("grawa", "hvd", "ddp"), default="grawa",
        help="average models, or share gradients in every step: by hvd.DistributedOptimizer under horovodrun, by "
             "DistributedDataParallel under torchrun (default: %(default)s)")  # fmt: skip
    add("--averaging", choices=sorted(POLICIES), default="uniform", help="the policy (default: %(default)s)")
    add("--policy", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of the policy, as floor=0")
    add("--period", type=int, default=32, help="local steps from round to round (default: %(default)s)")
    add("--pull", type=float, default=0.5, help="pull toward the centre in a round, 0 to 1 (default: %(default)s)")
    add("--proximity", type=float, default=0.01, help="pull toward it between rounds (default: %(default)s)")
    add("--warmup-steps", type=int, default=0, help="first steps that end in a plain mean (default: %(default)s)")
    add("--outer-momentum", type=float, default=0.0, help="of the centre, over rounds (default: %(default)s)")
    add("--outer-lr", type=float, help="move the centre by SGD with Nesterov at this rate, as DiLoCo does")
    add("--overlap", type=int, default=0, help="local steps during which a round is under way (default: %(default)s)")
    add("--fragments", type=int, default=1, help="parts that average in turn (default: %(default)s)")
    add("--local-period", type=int, help="steps from round to round within a host (default: no such rounds)")
    add("--optimizer-state", choices=("keep", "average", "reset"), default="keep", help="momentum and the like")
    add("--compression", choices=("none", "fp16"), default="none", help="how models travel (default: %(default)s)")
    add("--sam", type=float, metavar="RHO", help="wrap SAM around it; each worker climbs by its own gradient")


def named_policies() -> tuple[list[str], dict[str, str]]:
    """Which policies a name alone makes, "uniform" first; and of the others, why not."""
    refused = {}
    for name, policy in POLICIES.items():
        try:
            policy()
        except (TypeError, ValueError) as error:
            refused[name] = str(error)
    return sorted(POLICIES.keys() - refused.keys(), key=lambda name: (name != "uniform", name)), refused


def policy_of(options: argparse.Namespace) -> Averaging:
    """The policy that the command line names.

    Raises:
        ValueError: if the policy does not take these arguments, or needs others.
    """
    arguments = dict(argument.partition("=")[::2] for argument in options.policy)
    try:
        return POLICIES[options.averaging](**{name: _value(text) for name, text in arguments.items()})
    except TypeError as error:
        raise ValueError(f"--averaging {options.averaging} --policy {' '.join(options.policy)}: {error}") from error


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def average_models(
    model: nn.Module, optimizer: torch.optim.Optimizer, options: argparse.Namespace, **more: Any
) -> grawa_hvd.GrawaOptimizer:
    """Wrap an optimizer in ours, as the command line says; `more` goes to `DistributedGrawaOptimizer` as it is."""
    outer: dict[str, Any] = {"outer_momentum": options.outer_momentum}
    if options.outer_lr is not None:
        momentum = options.outer_momentum
        outer = {"outer_optimizer": lambda center: torch.optim.SGD(
            center, lr=options.outer_lr, momentum=momentum, nesterov=momentum > 0)}  # fmt: skip
    return grawa_hvd.DistributedGrawaOptimizer(
        optimizer, named_parameters=model.named_parameters(), buffers=model, averaging=policy_of(options),
        period=options.period, pull=options.pull, proximity=options.proximity, warmup_steps=options.warmup_steps,
        overlap=options.overlap, fragments=options.fragments, local_period=options.local_period,
        optimizer_state=options.optimizer_state, compression=getattr(grawa_hvd.Compression, options.compression),
        **outer, **more,
    )  # fmt: skip


def distribute(model: nn.Module, groups: Iterable[Any], factory: Factory, options: argparse.Namespace, peers: Peers,
               on_round: OnRound | None = None, **more: Any) -> Workers:  # fmt: skip
    """Let a model train with the other ranks.

    Args:
        model: every rank's is set to that of rank 0.
        groups: its parameters, or groups of them.
        factory: makes a plain torch optimizer of them.
        options: see `add_options`.
        peers: the ranks.
        on_round: gets the report of each round.
        more: further arguments of `DistributedGrawaOptimizer`; gradient sharing ignores them.

    Raises:
        ValueError: if the launcher does not serve `--optimizer`, and what `DistributedGrawaOptimizer` refuses.
    """
    if options.optimizer not in ("grawa", peers.gradients):
        raise ValueError(f"--optimizer {options.optimizer} does not run over {peers.title}: take {peers.gradients}")
    peers.broadcast(model)
    parts: list[Any] = []

    def wrapped(parameters: Iterable[Any], **_: Any) -> torch.optim.Optimizer:
        optimizer: Any = factory(parameters)
        if options.optimizer == "grawa":
            meter = GrawaMeter(on_round)
            parts.extend((model, average_models(model, optimizer, options, on_round=meter, **more), meter))
        else:
            parts.extend(peers.average_gradients(model, optimizer, passes=1 if options.sam is None else 2))
        return parts[1]  # type: ignore[no-any-return]

    if options.sam is None:
        wrapped(groups)
        return Workers(model, parts, peers)
    from pytorch_optimizer import SAM  # noqa: PLC0415  (a run without SAM does without it)

    return SAMWorkers(model, parts, peers, SAM(groups, wrapped, rho=options.sam))


class GrawaMeter:
    """What model averaging costs, from the reports of its rounds: pass it as `on_round`.

    Args:
        also: gets the reports too.
    """

    def __init__(self, also: OnRound | None = None) -> None:
        self._also = also
        self.communications, self.seconds, self.bytes = 0, 0.0, 0

    def __call__(self, report: grawa_hvd.RoundReport) -> None:
        """Take in a round."""
        self.communications += 1
        self.seconds += report.seconds
        self.bytes += report.bytes
        if self._also is not None:
            self._also(report)

    def after_step(self) -> None:
        """Do nothing: rounds report by themselves."""


class Workers:
    """This worker's model and optimizer, which train with those of the other ranks.

    Attributes:
        plain: the model as it was made, for its state and for evaluation.
        model: what training calls: the same, or DistributedDataParallel around it.
        optimizer: the distributed optimizer.
        meter: what the communication cost.

    Args:
        plain: the model.
        parts: model, optimizer and meter.
        peers: the ranks.
    """

    def __init__(self, plain: nn.Module, parts: list[Any], peers: Peers) -> None:
        self.plain, self._peers = plain, peers
        self.model, self.optimizer = parts[0], parts[1]
        self.meter: Meter = parts[2]
        # Policies may go by losses and samples; who shares gradients has no use for them.
        self._report: Callable[..., None] = getattr(self.optimizer, "report", lambda **told: None)

    def step(self, loss_of: Loss, samples: int) -> Tensor:
        """One training step on the loss of so many samples, which `loss_of` computes with a model; returns the loss."""
        self.optimizer.zero_grad()
        loss = loss_of(self.model)
        loss.backward()
        self._report(loss=loss, samples=samples)
        self.optimizer.step()
        self.meter.after_step()
        return loss.detach()

    def set_lr(self, lr: float) -> None:
        """Let the next steps have this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @contextmanager
    def evaluation(self) -> Iterator[nn.Module]:
        """The model that training has come to, in evaluation mode: a collective.

        That is the mean of the workers, or, where gradients are shared, the model that all have, with the statistics
        of rank 0's BatchNorm.
        """
        averages = hasattr(self.optimizer, "consensus")
        if not averages:
            self._peers.broadcast(self.plain)
        with self.optimizer.consensus() if averages else nullcontext(), torch.no_grad():
            self.plain.eval()
            yield self.plain
        self.plain.train()

    def state(self) -> dict[str, Any]:
        """This worker's own model, optimizer and costs."""
        costs = {name: getattr(self.meter, name) for name in ("communications", "bytes", "seconds")}
        return {"model": self.plain.state_dict(), "optimizer": self.optimizer.state_dict(), "costs": costs}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.plain.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in state["costs"].items():
            setattr(self.meter, name, value)


class SAMWorkers(Workers):
    """The same with sharpness-aware minimisation (Foret et al., ICLR 2021).

    Each worker climbs by the gradient of its own batch. The gradient up there is what the distributed optimizer steps
    by: where gradients are shared, that one alone travels.
    """

    def __init__(self, plain: nn.Module, parts: list[Any], peers: Peers, sam: Any) -> None:
        super().__init__(plain, parts, peers)
        self._sam = sam

    def step(self, loss_of: Loss, samples: int) -> Tensor:
        from pytorch_optimizer import disable_running_stats, enable_running_stats  # noqa: PLC0415

        self._sam.zero_grad()
        # DistributedDataParallel shares gradients in backward, unless told not to; Horovod counts backward passes.
        with self.model.no_sync() if hasattr(self.model, "no_sync") else nullcontext():
            loss = loss_of(self.model)
            loss.backward()
        self._report(loss=loss, samples=samples)
        disable_running_stats(self.plain)
        self._sam.step(lambda: loss_of(self.model).backward())
        enable_running_stats(self.plain)
        self.meter.after_step()
        return loss.detach()

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._sam.param_groups, self._sam.state = self.optimizer.param_groups, self.optimizer.state
