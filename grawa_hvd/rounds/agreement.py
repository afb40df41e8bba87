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
    """What ranks must agree on: a line for each setting and each parameter, and a digest of them all.

    Args:
        lines: all that is compared; names: of the parameters, in order.
    """

    def __init__(self, *lines: list[str], names: Iterable[str] = ()) -> None:
        self.names = list(names)
        self.lines = [line for part in lines for line in part]
        self.digest = digest(self.lines)


def gather_bytes(payload: bytes, transport: Transport, name: str) -> list[bytes]:
    """Every worker's bytes, in order of rank; empty for one that is absent. A collective.

    Each worker fills its own row of a matrix of zeros, and the matrices are summed: while a rank has joined, Horovod
    can only allreduce.
    """
    lengths = torch.zeros(transport.size, dtype=torch.float64, device="cpu")
    lengths[transport.rank] = len(payload)
    transport.sum_(lengths, f"{name}.lengths").wait()
    rows = torch.zeros(transport.size, int(lengths.max()), dtype=torch.float64, device="cpu")
    rows[transport.rank, : len(payload)] = torch.frombuffer(bytearray(payload or b"\0"), dtype=torch.uint8)[
        : len(payload)
    ]
    transport.sum_(rows.view(-1), f"{name}.bytes").wait()
    return [bytes(row[: int(length)].to(torch.uint8).tolist()) for row, length in zip(rows, lengths, strict=True)]


def common_order(names: list[str], transport: Transport) -> list[str] | None:
    """The first rank's order of the names of layers' parameters, if the ranks differ in nothing else; a collective.

    Returns:
        None where some rank has other names, or all have the same order.
    """
    texts = [text.decode() for text in gather_bytes("\n".join(names).encode(), transport, "names") if text]
    orders = [text.split("\n") for text in texts]
    differ = len(set(texts)) > 1 and len({tuple(sorted(order)) for order in orders}) == 1
    return orders[0] if differ else None


class OrderDiffersError(Exception):
    """The ranks have the same parameters in another order; raised on all of them, none the wiser in the end.

    Attributes:
        order: the names in the order that all are to take.
    """

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order


def refuse_difference(terms: Terms, transport: Transport) -> NoReturn:
    """Find the first line in which ranks differ and raise; a collective.

    Raises:
        OrderDiffersError: on every rank, if they have the same parameters in another order.
        ValueError: on every rank, otherwise.
    """
    order = common_order(terms.names, transport)
    if order is not None:
        raise OrderDiffersError(order)
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
