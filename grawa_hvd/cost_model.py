"""What a step costs: compute, latency and bandwidth, for gradient averaging and for model averaging.

An all-reduce of B bytes among n ranks, 4 of them on a host:

    latency   α · hops(n)                 hops of a ring: 2(n − 1); of a tree: 2⌈log₂ n⌉
    wire      r · (link / bandwidth)      r = 2(n − 1)/n · B, what a rank sends; one stream of a ring leaves a host
    host      r · software · share        the processor's part, copying and adding, while other pieces are on the wire
    together  latency + max(host, wire)

`share` is the number of ranks for each processor where ranks have to share them, 1 on a machine that has enough: it
multiplies all that the processor does. The step of a method:

    alone       c
    gradients   c + allreduce(B)
    models      c' + [allreduce(B) + round · B · share + local rounds] / τ,   c' = c + local · B · share
    overlap     in place of k · c' + allreduce:   host + max(k · c', what is left of it without the processor's part)
    fragments   F rounds of B / F

fp16 halves B on the wire and costs `half` · B · share. `make cost-model` fits the constants to what was measured and
writes what they predict: docs/cost_model.md. `python -m grawa_hvd plan` asks it for a period.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Constants:
    """Of a machine, seconds and seconds a byte, none negative.

    Attributes:
        latency: α, of one hop of a collective.
        software: of the host, for each byte that a rank sends.
        link: 1 / efficiency: the time on the wire over that at the nominal rate.
        round: of a round beside its all-reduce (pack, blend), for each byte of the model.
        half: of the conversion to 16 bits and back and the sums in 16 bits, for each byte of the model in float32.
        local: of a local step of ours beside the plain optimizer's (norms, the pull to the centre), likewise.
    """

    latency: float
    software: float
    link: float = 1.0
    round: float = 0.0
    half: float = 0.0
    local: float = 0.0


def ring(ranks: int) -> int:
    """Hops of a ring all-reduce, one after the other."""
    return 2 * (ranks - 1)


def tree(ranks: int) -> int:
    """Hops of a tree all-reduce: up and down again."""
    return 2 * math.ceil(math.log2(ranks))


@dataclass(frozen=True)
class Cluster:
    """Where it runs.

    Attributes:
        ranks: in all.
        per_host: ranks of a host.
        bandwidth: of a host's link, bits a second, each way; infinite for one that is no limit.
        local_bandwidth: between the ranks of a host, bits a second.
        processors: cores that the ranks share, all hosts together; 0 if each rank has its own.
        hops: of a collective among so many ranks.
    """

    ranks: int
    per_host: int
    bandwidth: float = math.inf
    local_bandwidth: float = math.inf
    processors: int = 0
    hops: Callable[[int], int] = field(default=ring)

    @property
    def share(self) -> float:
        """Ranks for each processor, at least 1."""
        return max(1.0, self.ranks / self.processors) if self.processors else 1.0

    @property
    def hosts(self) -> int:
        """Their number."""
        return -(-self.ranks // self.per_host)


@dataclass(frozen=True)
class Method:
    """How workers train: `kind` is "alone", "gradients", "models"; "allreduce" and "round" are those by themselves."""

    kind: str
    period: int = 1
    local_period: int = 0
    half: bool = False
    overlap: int = 0
    fragments: int = 1


@dataclass(frozen=True)
class Collective:
    """Seconds of an all-reduce: `host` keeps the processor, `away` are the others."""

    host: float
    away: float

    @property
    def seconds(self) -> float:
        """In all, where nothing else is done meanwhile."""
        return self.host + self.away


def allreduce(size: float, ranks: int, bandwidth: float, constants: Constants, cluster: Cluster) -> Collective:
    """An all-reduce of `size` bytes among `ranks` of the cluster's ranks, over links of `bandwidth` bits a second."""
    sent = 2 * (ranks - 1) / ranks * size
    host, wire = sent * constants.software * cluster.share, sent * constants.link * 8 / bandwidth
    latency = constants.latency * cluster.hops(ranks) * cluster.share
    return Collective(host, latency + max(0.0, wire - host))


def whole(size: float, half: bool, constants: Constants, cluster: Cluster) -> Collective:
    """An all-reduce among all ranks, of a model or gradients of `size` bytes in float32."""
    bandwidth = cluster.bandwidth if cluster.hosts > 1 else cluster.local_bandwidth
    found = allreduce(size / 2 if half else size, cluster.ranks, bandwidth, constants, cluster)
    return Collective(found.host + constants.half * size * cluster.share * half, found.away)


def step_seconds(method: Method, size: float, compute: float, constants: Constants, cluster: Cluster) -> float:
    """Mean time of a training step.

    Args:
        method: how workers train.
        size: bytes of the model in float32.
        compute: c, seconds of a step without communication, as slow as the shared processors make it.
        constants, cluster: where.
    """
    if method.kind == "alone":
        return compute
    if method.kind == "allreduce":
        return whole(size, method.half, constants, cluster).seconds
    if method.kind == "gradients":
        return compute + whole(size, method.half, constants, cluster).seconds
    if method.kind == "round":
        return pause(method, size, compute, constants, cluster)
    rounds = method.fragments * pause(method, size, compute, constants, cluster)
    rounds += _within_hosts(method, size, constants, cluster)
    return local_seconds(size, compute, constants, cluster) + rounds / method.period


def local_seconds(size: float, compute: float, constants: Constants, cluster: Cluster) -> float:
    """A local step of ours, between rounds."""
    return compute + constants.local * size * cluster.share


def exposed(method: Method, collective: Collective, compute: float) -> float:
    """What a round's all-reduce adds to the time of training: all of it, or what `overlap` steps do not hide."""
    return collective.host + max(0.0, collective.away - method.overlap * compute)


def pause(method: Method, size: float, compute: float, constants: Constants, cluster: Cluster) -> float:
    """Seconds that training waits for a round of all workers: of the model, or of one of its fragments."""
    part = size / method.fragments
    own = local_seconds(size, compute, constants, cluster)
    return exposed(method, whole(part, method.half, constants, cluster), own) + _beside(part, constants, cluster)


def _beside(size: float, constants: Constants, cluster: Cluster) -> float:
    """A round's own work, and the exchange of scores before it."""
    scores = constants.latency * cluster.hops(cluster.ranks) * cluster.share
    return constants.round * size * cluster.share + scores


def _within_hosts(method: Method, size: float, constants: Constants, cluster: Cluster) -> float:
    """The rounds within hosts of a period."""
    if not method.local_period:
        return 0.0
    among = allreduce(size, cluster.per_host, cluster.local_bandwidth, constants, cluster)
    # The last one of a period is the round of all.
    rounds = -(-method.period // method.local_period) - 1
    return rounds * (among.seconds + _beside(size, constants, cluster))


def communication(method: Method, size: float, compute: float, constants: Constants, cluster: Cluster) -> float:
    """The share of a step of ours that rounds take, from 0 to 1."""
    own = local_seconds(size, compute, constants, cluster)
    return 1 - own / step_seconds(method, size, compute, constants, cluster)


def waited_for(period: int) -> Method:
    """Rounds of all workers that training waits for."""
    return Method("models", period)


def period_for(limit: float, size: float, compute: float, constants: Constants, cluster: Cluster,
               method: Callable[[int], Method] = waited_for) -> int:  # fmt: skip
    """The smallest period that keeps communication within `limit`, a share of a step above 0 and below 1.

    Args:
        method: of a period; by default rounds that training waits for.
    """

    def holds(period: int) -> bool:
        return communication(method(period), size, compute, constants, cluster) <= limit

    most = 1
    while not holds(most):
        most *= 2
    least = most // 2 + 1
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if holds(middle) else (middle + 1, most)
    return most
