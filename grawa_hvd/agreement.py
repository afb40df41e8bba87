"""What ranks compare before they average: the same layout, the same settings, the same place in the run."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from grawa_hvd.communicator import Communicator
from grawa_hvd.layers import Layout, digest
from grawa_hvd.settings import Settings


@dataclass(frozen=True)
class Progress:
    """A worker's place in the run.

    Attributes:
        steps: local steps in all.
        since_round: local steps since the last round.
        rounds: completed rounds.
        has_center: whether it has a centre (1) or not (0).
    """

    steps: int = 0
    since_round: int = 0
    rounds: int = 0
    has_center: int = 0


@dataclass(frozen=True)
class Agreement:
    """The outcome: where the run stands, and the rank to copy the centre from; None where all stand there already."""

    progress: Progress
    leader: int | None


class Terms:
    """What ranks must agree on: a line for each setting and each parameter, and a digest of them all."""

    def __init__(self, settings: Settings, layout: Layout) -> None:
        self.settings = settings
        self.lines = [*settings.describe(), *layout.describe()]
        # 52 bits: exact in the float64 rows that ranks exchange.
        self.digest = digest(self.lines)


def agree(layout: Layout, terms: Terms, progress: Progress, communicator: Communicator) -> Agreement:
    """Compare layouts, settings, progress and parameters across ranks; a collective, at the first step and after loads.

    Where progress differs (rank 0 loaded a checkpoint and broadcast it, as Horovod scripts do), all take the place of
    the rank that got furthest.

    Args:
        layout: this rank's parameters.
        terms: what must be equal.
        progress: this rank's place in the run.
        communicator: the workers.

    Raises:
        ValueError: on every rank, if layouts or settings differ: names the first differing item and the ranks.
    """
    parameters = digest([repr(layout.table.norms().tolist())])
    mine = layout.numbers([1, terms.digest, parameters, *vars(progress).values()])
    rows = communicator.gather(mine, "agreement").long()
    present = rows[rows[:, 0] == 1]
    ranks = torch.nonzero(rows[:, 0]).flatten().tolist()
    if len(torch.unique(present[:, 1])) > 1:
        refuse_difference(terms, communicator)
    places = present[:, 3:]
    if not places.any() and len(torch.unique(present[:, 2])) > 1:
        warnings.warn(_different_start(present[:, 2], ranks), stacklevel=2)
    furthest = int(places[:, 0].argmax())
    agreed = Progress(*places[furthest].tolist())
    same = bool((places == places[furthest]).all())
    return Agreement(agreed, None if same else ranks[furthest])


def refuse_difference(terms: Terms, communicator: Communicator) -> NoReturn:
    """Find the first line in which ranks differ and raise; a collective.

    Raises:
        ValueError: always, on every rank.
    """
    texts = communicator.gather_bytes("\n".join(terms.lines).encode(), "descriptions")
    columns = {rank: text.decode().split("\n") for rank, text in enumerate(texts) if text}
    for number in range(max(len(column) for column in columns.values())):
        ranks_of: dict[str, list[int]] = {}
        for rank, column in columns.items():
            ranks_of.setdefault(column[number] if number < len(column) else "nothing", []).append(rank)
        if len(ranks_of) > 1:
            found = "; ".join(f"{line!r} on {_named(ranks)}" for line, ranks in ranks_of.items())
            raise ValueError(f"the workers' models or settings differ, first in: {found}")
    raise ValueError("the workers' models or settings differed for a moment: all ranks must change them together")


def _different_start(digests: Tensor, ranks: list[int]) -> str:
    other = [rank for rank, value in zip(ranks, digests.tolist(), strict=True) if value != digests[0]]
    return (
        f"the initial parameters of {_named(other)} differ from those of rank {ranks[0]}: did you forget "
        "hvd.broadcast_parameters(model.state_dict(), root_rank=0)?"
    )


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
