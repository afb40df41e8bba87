"""The ways to average a model that `benchmarks.round` times side by side, each checked against the exact result.

Worker m holds (1 + m) × a noise that all workers share, as parameters and, with factors that differ by layer, as
gradients. So the exact means are known on every rank without communication, and weights differ by worker and layer.
"""

from __future__ import annotations

import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import horovod.torch as hvd
import torch
from torch import Tensor
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager

import grawa_hvd
from benchmarks.models import Shape, numel
from benchmarks.ranks import HorovodRanks, Ranks

PULL = 0.5
NOISE_PERIOD = 99_991  # a prime: two layers begin at the same number only by chance


class Workload:
    """A model's parameters and gradients as worker `rank` of `size` holds them.

    Args:
        model: its name, for those of the collectives.
        shapes: of its L parameters.
        ranks: the M workers, of which this is number m; over Horovod by default.
    """

    def __init__(self, model: str, shapes: Sequence[Shape], ranks: Ranks | None = None) -> None:
        self.ranks = HorovodRanks() if ranks is None else ranks
        self.model, self.shapes, self.rank, self.size = model, shapes, self.ranks.rank, self.ranks.size
        self.bytes = 4 * numel(shapes)

    @cached_property
    def noise(self) -> list[Tensor]:
        """Normal numbers in the shapes of the model, the same on every rank."""
        block = torch.randn(NOISE_PERIOD, generator=torch.Generator().manual_seed(0))
        flat = block.repeat(-(-numel(self.shapes) // NOISE_PERIOD))
        sizes = [numel([shape]) for shape in self.shapes]
        pieces = flat[: sum(sizes)].split(sizes)
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def parameters(self) -> list[torch.nn.Parameter]:
        """New parameters: x[m, l] = (1 + m) × noise[l]."""
        return [torch.nn.Parameter(noise * (1 + self.rank)) for noise in self.noise]

    @cached_property
    def gradients(self) -> list[Tensor]:
        """g[m, l] = (1 + (m + l) mod M) × noise[l]: for every layer another worker has the least. Not to be written."""
        return [noise * self.factor(self.rank, layer) for layer, noise in enumerate(self.noise)]

    def with_gradients(self) -> list[torch.nn.Parameter]:
        """New parameters with the shared gradients."""
        parameters = self.parameters()
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return parameters

    def factor(self, rank: int, layer: int) -> int:
        """What the noise is multiplied by in g[rank, layer]."""
        return 1 + (rank + layer) % self.size

    @property
    def mean(self) -> float:
        """What the noise is multiplied by in the plain mean of the parameters."""
        return (1 + self.size) / 2

    def weighted_mean(self, layer: int) -> float:
        """The same for LGRAWA's mean (docs/design.md): β[m] = (1/‖g[m]‖) / Σ_j (1/‖g[j]‖)."""
        inverse = [1 / self.factor(rank, layer) for rank in range(self.size)]
        return sum(weight * (1 + rank) for rank, weight in enumerate(inverse)) / sum(inverse)

    def pulled(self, center: float) -> float:
        """The same for this worker's parameters after a pull toward a centre."""
        return (1 - PULL) * (1 + self.rank) + PULL * center


class Method(ABC):
    """One way, on its own copy of the model. Every call is collective: all ranks make it.

    Attributes:
        name: of its row in the table.
        role: "limit", "ours" or "peer".
        bytes: what this worker hands to the collectives in a call; of a round, known after the first.
    """

    name: ClassVar[str]
    role: ClassVar[str]
    bytes: int

    @abstractmethod
    def __init__(self, work: Workload) -> None: ...

    @abstractmethod
    def call(self) -> None:
        """Average once."""

    @abstractmethod
    def results(self) -> list[Tensor]:
        """What was averaged, layer by layer."""

    @abstractmethod
    def expected(self, work: Workload, layer: int) -> float:
        """What the noise must be multiplied by in the result of the first call."""

    @property
    def rows(self) -> list[str]:
        """Names of what `timed` returns."""
        return [self.name]

    def timed(self) -> list[float]:
        """Call once; the seconds that it took on this rank."""
        start = time.perf_counter()
        self.call()
        return [time.perf_counter() - start]

    def error(self, work: Workload) -> float:
        """Make the first call; the largest error of its result, relative to the layer's largest number."""
        self.call()
        worst = 0.0
        for layer, (result, noise) in enumerate(zip(self.results(), work.noise, strict=True)):
            goal = noise.double() * self.expected(work, layer)
            error = (result.detach().double() - goal).abs().max() / goal.abs().max()
            worst = max(worst, float(error.nan_to_num(torch.inf)))
        return worst


class BareAllreduce(Method):
    """One `hvd.allreduce_` of as many bytes in one tensor: what a round cannot do without."""

    name, role = "bare hvd.allreduce_", "limit"

    def __init__(self, work: Workload) -> None:
        self._ranks = work.ranks
        self._flat = torch.cat([noise.flatten() for noise in work.noise]).mul_(1 + work.rank)
        self._shapes, self._label, self.bytes = work.shapes, f"bench.{work.model}.bare", work.bytes

    def call(self) -> None:
        self._ranks.allreduce_(self._flat, self._label)

    def results(self) -> list[Tensor]:
        pieces = self._flat.split([numel([shape]) for shape in self._shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, self._shapes, strict=True)]

    def expected(self, work: Workload, _layer: int) -> float:
        return work.mean * work.size

    def error(self, work: Workload) -> float:
        error = super().error(work)
        self._flat.zero_()  # else every call would multiply it by the number of ranks, up to infinity
        return error


class BareTorchAllreduce(BareAllreduce):
    """The same by torch.distributed."""

    name = "bare dist.all_reduce"


class _Still(torch.optim.Optimizer):
    """An optimizer whose step does nothing: what a step of the drop-in takes is then the averaging's alone."""

    def __init__(self, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        pass


class _DropIn(Method):
    role = "ours"
    averaging: ClassVar[str | grawa_hvd.LGRAWA]

    def __init__(self, work: Workload) -> None:
        self._parameters = work.with_gradients()
        self._optimizer = grawa_hvd.DistributedGrawaOptimizer(
            _Still(self._parameters), averaging=self.averaging, period=1, pull=PULL, proximity=0.0
        )

    def call(self) -> None:
        self._optimizer.step()

    def results(self) -> list[Tensor]:
        return list(self._parameters)

    def error(self, work: Workload) -> float:
        with warnings.catch_warnings():
            # The workers start apart here, or there would be nothing to average.
            warnings.filterwarnings("ignore", message="the initial parameters of")
            error = super().error(work)
        self.bytes = self._optimizer.last_round.bytes
        return error


class UniformRound(_DropIn):
    """A round of the drop-in with equal weights."""

    name, averaging = "grawa_hvd uniform", "uniform"

    def timed(self) -> list[float]:
        self.call()
        return [self._optimizer.last_round.seconds]

    def expected(self, work: Workload, _layer: int) -> float:
        return work.pulled(work.mean)


class LgrawaRound(_DropIn):
    """A round of the drop-in weighted by layer, alone and with the norms of one local step's gradients."""

    name, averaging = "grawa_hvd LGRAWA", grawa_hvd.LGRAWA(floor=0.0)
    with_norms: ClassVar[str] = "grawa_hvd LGRAWA + norms"

    @property
    def rows(self) -> list[str]:
        return [self.name, self.with_norms]

    def timed(self) -> list[float]:
        start = time.perf_counter()
        self.call()
        whole = time.perf_counter() - start
        return [self._optimizer.last_round.seconds, whole]

    def expected(self, work: Workload, layer: int) -> float:
        return work.pulled(work.weighted_mean(layer))


class TorchAverager(Method):
    """torch.distributed's `PeriodicModelAverager` over Gloo: the plain mean, no pull."""

    name, role = "torch PeriodicModelAverager", "peer"

    def __init__(self, work: Workload) -> None:
        self._parameters, self.bytes = work.with_gradients(), work.bytes
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="When period is 1")
            self._averager = PeriodicModelAverager(period=1)

    def call(self) -> None:
        self._averager.average_parameters(self._parameters)

    def results(self) -> list[Tensor]:
        return list(self._parameters)

    def expected(self, work: Workload, _layer: int) -> float:
        return work.mean


class LayerByLayer(Method):
    """LGRAWA as in the paper's authors' code, written anew: a norm a layer read by the host, parameters
    scaled and concatenated in Python, two allreduces, parameters pulled one by one.
    """

    name, role = "authors: layer by layer", "peer"

    def __init__(self, work: Workload) -> None:
        self._parameters, self._allreduce_ = work.with_gradients(), work.ranks.allreduce_
        self._label, self.bytes = f"bench.{work.model}.authors", work.bytes + 4 * len(work.shapes)

    @torch.no_grad()
    def call(self) -> None:
        inverse = [1 / torch.norm(parameter.grad).item() for parameter in self._parameters]
        total = torch.tensor(inverse)
        self._allreduce_(total, f"{self._label}.scores")
        weights = [own / all_ for own, all_ in zip(inverse, total.tolist(), strict=True)]
        center = torch.cat([x.ravel() * weight for x, weight in zip(self._parameters, weights, strict=True)])
        self._allreduce_(center, f"{self._label}.model")
        begin = 0
        for parameter in self._parameters:
            own_center = center[begin : begin + parameter.numel()].view_as(parameter)
            parameter.add_(own_center - parameter, alpha=PULL)
            begin += parameter.numel()

    def results(self) -> list[Tensor]:
        return list(self._parameters)

    def expected(self, work: Workload, layer: int) -> float:
        return work.pulled(work.weighted_mean(layer))


class HorovodStep(Method):
    """The communication of one step of `hvd.DistributedOptimizer`: an allreduce a gradient, none overlapped."""

    name, role = "hvd.DistributedOptimizer step", "peer"

    def __init__(self, work: Workload) -> None:
        self._parameters, self.bytes = work.parameters(), work.bytes
        for parameter in self._parameters:
            parameter.grad = parameter.detach().clone()  # it is averaged in place
        names = [(f"bench.{work.model}.{layer}", parameter) for layer, parameter in enumerate(self._parameters)]
        self._optimizer = hvd.DistributedOptimizer(torch.optim.SGD(self._parameters, lr=0.1), names)

    def call(self) -> None:
        self._optimizer.synchronize()

    def results(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def expected(self, work: Workload, _layer: int) -> float:
        return work.mean


METHODS: dict[str, tuple[type[Method], ...]] = {
    "horovod": (BareAllreduce, UniformRound, LgrawaRound, TorchAverager, LayerByLayer, HorovodStep),
    "torch": (BareTorchAllreduce, UniformRound, LgrawaRound, TorchAverager, LayerByLayer),
}
"""All ways over each backend; the first is the limit."""
