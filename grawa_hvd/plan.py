"""What period keeps communication within a share of the time, and what the options of a round change of it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from grawa_hvd.cost_model import Cluster, Constants, Method, pause, period_for, step_seconds
from grawa_hvd.hardware import ERRORS, FITTED, Gpus

RATES = {"gbit": 1e9, "mbit": 1e6, "kbit": 1e3}
COUNTS = {"B": 1e9, "M": 1e6, "k": 1e3}
FRAGMENTS = 4
USUAL = 32  # the default period, and the longest that is usual (README.md)


def bits(rate: str) -> float:
    """1gbit → 1e9 bits a second; infinite for none.

    Raises:
        ValueError: if it is written in another way.
    """
    if rate == "none":
        return math.inf
    found = _scaled(rate, RATES)
    if not 0 < found < math.inf:
        raise ValueError(f"a rate is written as 1gbit, 100mbit, 10kbit or none, but this is {rate!r}")
    return found


def count(text: str) -> int:
    """25M → 25,000,000; also B, k and plain numbers.

    Raises:
        ValueError: if it is written in another way, or below 1.
    """
    found = _scaled(text, {**COUNTS, "": 1.0})
    if not 1 <= found < math.inf or not found.is_integer():
        raise ValueError(f"a number is written as 25M, 1.3B, 300k or 25000000, but this is {text!r}")
    return int(found)


def _scaled(text: str, units: dict[str, float]) -> float:
    """The number before the first unit that fits, times the unit; NaN if there is none."""
    for unit, factor in units.items():
        if text.endswith(unit):
            with suppress(ValueError):
                return float(text.removesuffix(unit)) * factor
    return math.nan


@dataclass(frozen=True)
class Choice:
    """Arguments of `DistributedGrawaOptimizer`, with the smallest period that keeps within the share.

    Attributes:
        arguments: beside the period.
        method: the same, for the cost model.
        pause: seconds that training waits for a round.
        sent: bytes that a worker sends to all others, a step; within hosts it may send more.
        seconds: of a training step.
    """

    arguments: str
    method: Method
    pause: float
    sent: float
    seconds: float


@dataclass(frozen=True)
class Job:
    """What is trained, and where.

    Attributes:
        parameters: of the model.
        step: seconds of a step without communication.
        cluster: the workers and their links.
        constants: of the machine.
        small: whether parameters have 16 bits. They are counted as if they had 32, and travelled in 16.
    """

    parameters: int
    step: float
    cluster: Cluster
    constants: Constants = FITTED
    small: bool = False

    @property
    def size(self) -> int:
        """Bytes of the model in float32."""
        return 4 * self.parameters

    def seconds(self, method: Method) -> float:
        """Of a training step."""
        return step_seconds(method, self.size, self.step, self.constants, self.cluster)

    def choice(self, arguments: str, method: Method) -> Choice:
        """What a method costs here."""
        waits = pause(method, self.size, self.step, self.constants, self.cluster)
        ranks = self.cluster.ranks
        sent = 2 * (ranks - 1) / ranks * self.size / (2 if method.half else 1) / method.period
        return Choice(arguments, method, waits, sent, self.seconds(method))


def options(job: Job) -> dict[str, Callable[[int], Method]]:
    """What can be chosen here beside the period: arguments → the method of a period."""
    models = partial(Method, "models", half=job.small)
    found: dict[str, Callable[[int], Method]] = {"": models}
    if not job.small:
        found["compression=Compression.fp16"] = partial(models, half=True)
    found["overlap=period // 2"] = lambda period: models(period, overlap=period // 2)
    found[f"fragments={FRAGMENTS}"] = lambda period: models(period, fragments=min(period, FRAGMENTS))
    if 1 < job.cluster.hosts < job.cluster.ranks:
        found["local_period=period // 4"] = lambda period: models(period, local_period=period // 4)
    return found


def choices(job: Job, share: float) -> list[Choice]:
    """The plain round first, then each option by itself.

    Args:
        share: of the time that communication may take, above 0 and below 1.
    """
    found = []
    for arguments, method in options(job).items():
        period = period_for(share, job.size, job.step, job.constants, job.cluster, method)
        found.append(job.choice(arguments, method(period)))
    return found


def report(job: Job, share: float) -> str:
    """The table that the command prints, and how to read it."""
    gradients = job.seconds(Method("gradients", half=job.small))
    lines = [
        f"hvd.DistributedOptimizer, gradients every step: {gradients:.3g} s a step, "
        f"{1 - job.step / gradients:.0%} of it communication.",
        f"Periods that keep communication within {share:.0%} of the time:",
        "",
        f"{'arguments':42}{'a round waits':>14}{'sent a step':>13}{'speed':>9}",
    ]
    found = choices(job, share)
    for choice in found:
        arguments = ", ".join(filter(None, (f"period={choice.method.period:,}", choice.arguments)))
        speed = f"× {gradients / choice.seconds:.3g}"
        lines.append(f"{arguments:42}{_seconds(choice.pause):>14}{choice.sent / 1e6:>10.3g} MB{speed:>9}")
    return "\n".join([*lines, "", *_notes(found, job.constants == FITTED)])


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def _notes(found: list[Choice], measured: bool) -> list[str]:
    notes = [
        "- speed: of hvd.DistributedOptimizer's. An overlapped round waits for what its steps do not hide.",
        f"- Fragments are {FRAGMENTS} rounds a period, each of a part: as many bytes, in shorter pauses.",
    ]
    if any(choice.method.local_period for choice in found):
        notes.append("- With local_period, workers of a host also meet every so many steps, over no link.")
    if found[0].method.period > USUAL:
        notes.append(
            f"- What a period costs in accuracy is not in here. Beyond {USUAL}, try it, or shorten it by options."
        )
    middle, most = ERRORS
    error = f"the formula misses measured steps by {middle:.0%} (median), {most:.0%} at most"
    known = f"over Gloo, {error}" if measured else "what is assumed of GPUs has not been measured"
    return [*notes, f"- How sure this is: {known}. docs/commands.md"]


def _number(least: float, below: float, allowed: str) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        number = float(text)
        if not least < number < below:
            raise argparse.ArgumentTypeError(f"must be {allowed}, but is {text}")
        return number

    parsed.__name__ = "number"  # for argparse's message
    return parsed


def _told(parse: Callable[[str], float]) -> Callable[[str], float]:
    """Let argparse show what a ValueError says."""

    def parsed(text: str) -> float:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m grawa_hvd plan`."""
    add = parser.add_argument
    add("--parameters", type=_told(count), required=True, metavar="25M", help="of the model")
    add("--step-time", type=_number(0, math.inf, "above 0"), required=True, metavar="SECONDS",
        help="of a training step without communication, on one worker")  # fmt: skip
    add("--link", type=_told(bits), required=True, metavar="1gbit", help="of each host, each way; none: no limit")
    add("--workers", type=_told(count), required=True, metavar="N", help="in all, 2 or more")
    add("--hosts", type=_told(count), metavar="N", help="with as many workers each (default: one worker a host)")
    add("--dtype", choices=["float32", "float16", "bfloat16"], default="float32",
        help="of the parameters (default: float32); over Horovod bfloat16 travels as float32")  # fmt: skip
    add("--share", type=_number(0, 1, "above 0 and below 1"), default=0.05, metavar="SHARE",
        help="of the time that communication may take (default: %(default)s)")  # fmt: skip
    add("--device", choices=["cpu", "cuda"], default="cpu",
        help="cpu: constants as measured, over Gloo (default); cuda: as assumed of GPUs with NCCL")  # fmt: skip


def run(given: argparse.Namespace, fail: Callable[[str], None]) -> int:
    """Print the plan; `fail` ends the program with a message about the arguments."""
    workers, hosts = given.workers, given.hosts or given.workers
    if workers < 2 or workers % hosts:
        fail(f"--workers must be 2 or more, as many on each host, but is {workers:,} with --hosts {hosts:,}")
    cluster, constants = Cluster(workers, workers // hosts, given.link), FITTED
    if given.device == "cuda":
        gpus = Gpus()
        cluster, constants = gpus.cluster(workers, workers // hosts, given.link / 1e9), gpus.constants()
    print(report(Job(given.parameters, given.step_time, cluster, constants, given.dtype != "float32"), given.share))
    return 0
