"""What ranks must agree on before they average: the same model, the same settings, the same place in the run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import torch

from grawa_hvd.communicator import Communicator, MismatchedRowsError
from grawa_hvd.layers import digest


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


class Terms:
    """What ranks must agree on: a line for each setting and each parameter, and a digest of them all."""

    def __init__(self, *lines: list[str]) -> None:
        self.lines = [line for part in lines for line in part]
        # 52 bits: exact in the float64 rows that ranks exchange.
        self.digest = digest(self.lines)


def refuse(reason: str, terms: Terms, communicator: Communicator) -> NoReturn:
    """Raise on all ranks, which come to exchange rows, what this rank alone may know; a collective.

    A row of one number is like none of another rank's, so those too go on to tell what differs.

    Args:
        reason: what all ranks raise, if all have come for it.
        terms: they say the reason, too.
        communicator: the workers.

    Raises:
        ValueError: always, on every rank.
    """
    with suppress(MismatchedRowsError):
        communicator.gather(torch.zeros(1, dtype=torch.float64), "rows")
    refuse_difference(terms, communicator, reason)


def refuse_difference(
    terms: Terms,
    communicator: Communicator,
    otherwise: str = "the workers' models or settings differed for a moment: all ranks must change them together",
) -> NoReturn:
    """Find the first line in which ranks differ and raise; a collective.

    Args:
        terms: of this rank; communicator: the workers.
        otherwise: what to say where no line differs.

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
            found = "; ".join(f"{line!r} on {communicator.named(ranks)}" for line, ranks in ranks_of.items())
            raise ValueError(f"the workers' models or settings differ, first in: {found}")
    raise ValueError(otherwise)
