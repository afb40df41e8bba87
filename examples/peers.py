"""The ranks that the examples train with: over Horovod, or over torch.distributed. One class for each."""

# Without the import of annotations: DistributedDataParallel compares those of a communication hook with its own types.

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel


class Meter(Protocol):
    """What communication costs a rank.

    Attributes:
        communications: how often the ranks exchanged what they had.
        bytes: what this rank handed to the collectives.
        seconds: how long training waited for them.
    """

    communications: int
    bytes: int
    seconds: float

    def after_step(self) -> None:
        """Take in what the step did."""


class Peers(ABC):
    """The ranks of this run.

    Attributes:
        transport: what `--transport` calls the backend.
        title: what its documentation calls it.
        baseline: the backend's own way to average gradients.
        gradients: what `--optimizer` calls that.
        rank: this rank's number.
        size: the number of ranks.
        local_rank: this rank's number on its host.
        launcher: what started the ranks; None if that is not known.
    """

    transport: ClassVar[str]
    title: ClassVar[str]
    baseline: ClassVar[str]
    gradients: ClassVar[str]
    rank: int
    size: int
    local_rank: int

    def __init__(self) -> None:
        self.launcher = launcher()

    @property
    @abstractmethod
    def command(self) -> str:
        """Return how the ranks were started, up to the script."""

    @abstractmethod
    def broadcast(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of rank 0."""

    @abstractmethod
    def mean(self, values: list[float]) -> list[float]:
        """Return the means over the ranks."""

    @abstractmethod
    def minimum(self, value: int) -> int:
        """Return the smallest value of a rank."""

    @abstractmethod
    def average_gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, passes: int = 1
    ) -> tuple[nn.Module, Any, Meter]:
        """Make the baseline.

        Args:
            model: what trains.
            optimizer: its plain optimizer.
            passes: backward passes a step, whose last one alone shares gradients. DistributedDataParallel is told which
                are not the last by its own `no_sync`.

        Returns:
            The model to call in training, the optimizer to step, and the meter.
        """

    @abstractmethod
    def stop(self) -> None:
        """Wait for all ranks and leave them."""


class HorovodPeers(Peers):
    """The ranks that horovodrun started."""

    transport = "horovod"
    title = "Horovod"
    baseline = "hvd.DistributedOptimizer"
    gradients = "hvd"

    def __init__(self, device: str) -> None:
        import horovod.torch as hvd  # noqa: PLC0415  (a run over torch.distributed does without Horovod)

        super().__init__()
        hvd.init()
        self._hvd = hvd
        self.rank, self.size, self.local_rank = hvd.rank(), hvd.size(), hvd.local_rank()

    @property
    def command(self) -> str:
        return "python" if self.launcher is None else f"{self.launcher} -np {self.size} python"

    def broadcast(self, model: nn.Module) -> None:
        self._hvd.broadcast_parameters(model.state_dict(), root_rank=0)

    def mean(self, values: list[float]) -> list[float]:
        means: list[float] = self._hvd.allreduce(torch.tensor(values), name="mean").tolist()
        return means

    def minimum(self, value: int) -> int:
        return int(self._hvd.allreduce(torch.tensor(value), op=self._hvd.Min, name="minimum"))

    def average_gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, passes: int = 1
    ) -> tuple[nn.Module, Any, Meter]:
        reducing = self._hvd.DistributedOptimizer(
            optimizer, named_parameters=model.named_parameters(), backward_passes_per_step=passes
        )
        return model, reducing, HorovodMeter(reducing)

    def stop(self) -> None:
        self._hvd.barrier()
        self._hvd.shutdown()


class HorovodMeter:
    """What hvd.DistributedOptimizer costs.

    Every gradient travels in every step. The seconds are those of `synchronize`, in which a step waits for the
    gradients. What travelled beside backward is not in them.
    """

    def __init__(self, optimizer: Any) -> None:
        self._gradient_bytes = sum(4 * p.numel() for group in optimizer.param_groups for p in group["params"])
        self._synchronize = optimizer.synchronize
        optimizer.synchronize = self._timed
        self.communications, self.bytes, self.seconds = 0, 0, 0.0

    def _timed(self) -> None:
        start = time.perf_counter()
        self._synchronize()
        self.seconds += time.perf_counter() - start
        self.communications += 1
        self.bytes += self._gradient_bytes

    def after_step(self) -> None:
        """Do nothing: `synchronize` is what is timed."""


class TorchPeers(Peers):
    """The ranks that torchrun started."""

    transport = "torch"
    title = "torch.distributed"
    baseline = "DistributedDataParallel"
    gradients = "ddp"

    def __init__(self, device: str) -> None:
        super().__init__()
        # NCCL gives every rank a GPU of its own. Ranks that share one send through Gloo.
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        has_own_gpu = device == "cuda" and local_size <= torch.cuda.device_count()
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_own_gpu else "gloo")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))

    @property
    def command(self) -> str:
        if self.launcher is None:
            return "python"
        hosts, each = (int(os.environ[name]) for name in ("GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return f"{self.launcher}{f' --nnodes {hosts}' if hosts > 1 else ''} --nproc-per-node {each}"

    def broadcast(self, model: nn.Module) -> None:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)

    def mean(self, values: list[float]) -> list[float]:
        sums = torch.tensor(values)
        dist.all_reduce(sums)
        means: list[float] = (sums / self.size).tolist()
        return means

    def minimum(self, value: int) -> int:
        smallest = torch.tensor(value)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest)

    def average_gradients(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, passes: int = 1
    ) -> tuple[nn.Module, Any, Meter]:
        reducing = DistributedDataParallel(model)
        return reducing, optimizer, DDPMeter(reducing, optimizer)

    def stop(self) -> None:
        dist.barrier()
        dist.destroy_process_group()


class DDPMeter:
    """What DistributedDataParallel costs.

    Bytes are those of its buckets, which hold every gradient in every step. The seconds go from the hand-over of the
    last bucket, when backward has computed all gradients, to the step: DDP waits for all buckets there and copies the
    means back. What travelled beside backward is not in them. Over NCCL the host hardly waits, and the seconds say
    nothing about the GPU.
    """

    def __init__(self, model: DistributedDataParallel, optimizer: torch.optim.Optimizer) -> None:
        self.communications, self.bytes, self.seconds = 0, 0, 0.0
        self._handed_over: float | None = None
        model.register_comm_hook(dist.group.WORLD, self._hand_over)
        optimizer.register_step_pre_hook(self._before_step)

    def _hand_over(
        self,
        group: dist.ProcessGroup,
        bucket: dist.GradBucket,  # type: ignore[name-defined]  # the stubs do not export it
    ) -> Future[Tensor]:
        self._handed_over = time.perf_counter()
        self.bytes += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    def _before_step(self, *_: Any) -> None:
        if self._handed_over is not None:
            self.seconds += time.perf_counter() - self._handed_over
            self.communications += 1
        self._handed_over = None

    def after_step(self) -> None:
        """Do nothing: the hooks see all."""


BACKENDS: dict[str, type[HorovodPeers] | type[TorchPeers]] = {
    backend.transport: backend for backend in (HorovodPeers, TorchPeers)
}
LAUNCHERS = {"horovod": "horovodrun", "torch": "torchrun"}


def launcher(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return which launcher started this process; None if neither has left its mark."""
    if "HOROVOD_RANK" in environment:
        return LAUNCHERS["horovod"]
    return LAUNCHERS["torch"] if "TORCHELASTIC_RUN_ID" in environment else None


def chosen_transport(named: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """Return the transport that the user names, or the launcher's.

    Other launchers set WORLD_SIZE for torch.distributed. Where nothing tells, as under mpirun, it is Horovod.

    Raises:
        ValueError: if the launcher serves another transport than the named one.
    """
    started_by = launcher(environment)
    if named is None:
        is_torch = started_by == LAUNCHERS["torch"] or (started_by is None and "WORLD_SIZE" in environment)
        return "torch" if is_torch else "horovod"
    if started_by not in (None, LAUNCHERS[named]):
        raise ValueError(f"--transport {named} needs {LAUNCHERS[named]}, but {started_by} started this process")
    return named


def start(transport: str | None, device: str) -> Peers:
    """Join the other ranks.

    Args:
        transport: "horovod" or "torch"; the launcher's if None.
        device: where the run trains, "cpu" or "cuda".
    """
    return BACKENDS[chosen_transport(transport)](device)
