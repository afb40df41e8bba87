"""What the workers learn from: a shard of the data each, and batches drawn from it by a rule that others can repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]

# Worker m of seed s draws by a generator that is seeded with SEEDS·s + m: 32 bits are all that torch's generator uses.
SEEDS = 2**16


def batches(samples: int, batch_size: int, seed: int, worker: int) -> Iterator[Tensor]:
    """The batches of one simulated worker, without end: to give a real one the same.

    Permutations of the shard follow each other, and are cut into batches where the cuts fall: every batch is full,
    and every sample comes once in each permutation.

    Args:
        samples: how many the worker's shard has, at least 1.
        batch_size: samples of a batch, at least 1.
        seed: of the simulation, from 0 to 65535.
        worker: its number, from 0 to 65534.

    Yields:
        Numbers of samples of the shard, int64, [batch_size].
    """
    generator = torch.Generator().manual_seed(SEEDS * seed + worker)
    drawn = torch.empty(0, dtype=torch.int64)
    while True:
        while len(drawn) < batch_size:
            drawn = torch.cat([drawn, torch.randperm(samples, generator=generator)])
        yield drawn[:batch_size]
        drawn = drawn[batch_size:]


def split(inputs: Tensor, targets: Tensor, workers: int, seed: int) -> list[Pair]:
    """Deal the samples out at random: so many shards, whose sizes differ by one at most.

    Args:
        inputs, targets: a row a sample, [N, ...].
        workers: M, from 1 to N.
        seed: from 0 to 65535.
    """
    generator = torch.Generator().manual_seed(SEEDS * seed + SEEDS - 1)
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    return [(inputs[part], targets[part]) for part in torch.tensor_split(order, workers)]


class Shards:
    """The shards of M workers, one after the other, and where each worker is in its own.

    Args:
        pairs: inputs [n, ...] and targets [n, ...] of each worker.
        batch_size: samples that a worker takes at a time.
        seed: see `batches`.
        device: where the batches are wanted.
    """

    def __init__(self, pairs: Sequence[Pair], batch_size: int, seed: int, device: torch.device) -> None:
        self._inputs, self._targets = (torch.cat(part).to(device) for part in zip(*pairs, strict=True))
        self._streams = []
        begin = 0
        for worker, (inputs, _) in enumerate(pairs):
            self._streams.append((begin, batches(len(inputs), batch_size, seed, worker)))
            begin += len(inputs)

    def draw(self) -> Pair:
        """The next batch of every worker: inputs and targets, [M, batch size, ...]."""
        rows = torch.stack([next(stream) + begin for begin, stream in self._streams]).to(self._inputs.device)
        return self._inputs[rows], self._targets[rows]


def checked_pairs(shards: object, workers: int | None, seed: int) -> list[Pair]:
    """The shard of each worker, as `shards=` and `workers=` say.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    given = list(shards) if isinstance(shards, Sequence) else []
    if len(given) == 2 and all(isinstance(part, Tensor) for part in given):
        inputs, targets = _checked_pair(given, "shards")
        if not isinstance(workers, int) or not 1 <= workers <= min(len(inputs), SEEDS - 1):
            most = min(len(inputs), SEEDS - 1)
            raise ValueError(
                f"workers must be an integer from 1 to {most} where shards is one pair of {len(inputs)} samples, but "
                f"is {workers!r}"
            )
        return split(inputs, targets, workers, seed)
    if not 1 <= len(given) < SEEDS:
        raise ValueError(
            "shards must be a sequence of (inputs, targets), one for each worker, or one such pair together with "
            f"workers=, but is {type(shards).__name__} of length {len(given)}"
        )
    if workers not in (None, len(given)):
        raise ValueError(f"workers must be None or the number of shards, {len(given)}, but is {workers!r}")
    return [_checked_pair(pair, f"shards[{number}]") for number, pair in enumerate(given)]


def _checked_pair(pair: object, name: str) -> Pair:
    if not (isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(part, Tensor) for part in pair)):
        raise ValueError(f"{name} must be a pair of tensors, inputs and targets, but is {type(pair).__name__}")
    inputs, targets = pair
    if not inputs.dim() or not targets.dim() or len(inputs) != len(targets) or not len(inputs):
        raise ValueError(
            f"{name} must have as many inputs as targets, and one at least, but their shapes are "
            f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    return inputs, targets
