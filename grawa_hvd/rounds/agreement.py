"""What ranks must agree on before they average: the same model and the same settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NoReturn

import torch

from grawa_hvd.transport.base import Transport


def digest(lines: Iterable[str]) -> int:
    """A 52-bit digest of some lines: exact in a float64."""
    return int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:8], "big") >> 12


class Terms:
    """What ranks must agree on: a line for each setting and each parameter, and a digest of them all."""

    def __init__(self, *lines: list[str]) -> None:
        self.lines = [line for part in lines for line in part]
        self.digest = digest(self.lines)


def gather_bytes(payload: bytes, transport: Transport, name: str) -> list[bytes]:
    """Every worker's bytes, in order of rank; empty for one that is absent. A collective.

    Each worker fills its own row of a matrix of zeros, and the matrices are summed: while a rank has joined, Horovod
    can only allreduce.
    """
    lengths = torch.zeros(transport.size, dtype=torch.float64)
    lengths[transport.rank] = len(payload)
    transport.sum_(lengths, f"{name}.lengths").wait()
    rows = torch.zeros(transport.size, int(lengths.max()), dtype=torch.float64)
    rows[transport.rank, : len(payload)] = torch.frombuffer(bytearray(payload or b"\0"), dtype=torch.uint8)[
        : len(payload)
    ]
    transport.sum_(rows.view(-1), f"{name}.bytes").wait()
    return [bytes(row[: int(length)].to(torch.uint8).tolist()) for row, length in zip(rows, lengths, strict=True)]


def refuse_difference(terms: Terms, transport: Transport) -> NoReturn:
    """Find the first line in which ranks differ and raise; a collective.

    Raises:
        ValueError: always, on every rank.
    """
    texts = gather_bytes("\n".join(terms.lines).encode(), transport, "terms")
    columns = {rank: text.decode().split("\n") for rank, text in enumerate(texts) if text}
    for number in range(max(len(column) for column in columns.values())):
        ranks_of: dict[str, list[int]] = {}
        for rank, column in columns.items():
            ranks_of.setdefault(column[number] if number < len(column) else "nothing", []).append(rank)
        if len(ranks_of) > 1:
            found = "; ".join(f"{line!r} on {transport.label(ranks)}" for line, ranks in ranks_of.items())
            raise ValueError(f"the workers' models or settings differ, first in: {found}")
    raise ValueError("the workers' models or settings differed for a moment: all ranks must change them together")
