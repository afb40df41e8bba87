"""The text of this repository at a commit, cut into windows, and a small transformer that tells the next character."""

from __future__ import annotations

import io
import subprocess
import tarfile
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.conditions import WORKERS, Condition, evenly, noisy
from experiments.digits import Data, Pair

COMMIT, FOLDERS = "b16a99345a9271fca5847c3911e43f821b7998f8", ("docs", "grawa_hvd", "tests", "csrc")
SUFFIXES = (".md", ".py", ".pyi", ".cpp", ".cu", ".h", ".cuh")
CHARACTERS, CONTEXT, WIDTH, HEADS = 128, 32, 32, 2
TEST, HELD_OUT = 256, 64


@cache
def windows() -> Tensor:
    """The text in its order, bytes [N, CONTEXT + 1]; what is not ASCII is 0.

    Raises:
        CalledProcessError: outside a clone that has the commit.
    """
    command = ["git", "-C", str(Path(__file__).parents[1]), "archive", COMMIT, *FOLDERS]
    with tarfile.open(fileobj=io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)) as archive:
        members = [member for member in archive if member.isfile() and member.name.endswith(SUFFIXES)]
        members.sort(key=lambda member: (FOLDERS.index(member.name.split("/")[0]), member.name))
        read = b"".join(archive.extractfile(member).read() for member in members)  # type: ignore[union-attr]
    text = torch.frombuffer(bytearray(read), dtype=torch.uint8).long()
    text[text >= CHARACTERS] = 0
    return text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)


def load(split: int) -> Data:
    """Windows to test and held out are drawn by the number of the split; the others stay in the order of the text."""
    order = torch.randperm(len(windows()), generator=torch.Generator().manual_seed(split))
    test, held_out, train = torch.tensor_split(order, [TEST, TEST + HELD_OUT])
    parts = (windows()[part] for part in (train.sort().values, held_out, test))
    return Data(*((part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in parts))


def in_order(train: Pair, generator: torch.Generator) -> list[Pair]:
    """The first eighth of the text for the first worker, and so on."""
    return list(zip(*(torch.tensor_split(part, WORKERS) for part in train), strict=True))


CONDITIONS = {
    "iid": Condition("nothing", evenly),
    "skew": Condition("an eighth of the text each", in_order),
    "noisy_3": Condition("random characters, 3 of 8", partial(noisy, workers=3, classes=CHARACTERS), bad=3),
}


class Block(nn.Module):
    """Attention to what came before, and a perceptron, each after a norm and beside a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries, self.attended = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [N, T, WIDTH] → the same shape."""
        query, key, value = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.queries(self.first(vectors)).chunk(3, dim=2)
        )
        length = vectors.shape[1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        likeness = query @ key.transpose(2, 3) * (HEADS / WIDTH) ** 0.5
        seen = likeness.masked_fill(future, -torch.inf).softmax(dim=3) @ value
        vectors = vectors + self.attended(seen.transpose(1, 2).flatten(2))
        said: Tensor = vectors + self.perceptron(self.second(vectors))
        return said


class Transformer(nn.Module):
    """One block, over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.block, self.norm, self.head = Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)

    def forward(self, text: Tensor) -> Tensor:
        """Of characters [N, T], for each place the logits of the next one, [N, T, CHARACTERS]."""
        said: Tensor = self.head(self.norm(self.block(self.characters(text) + self.places.weight[: text.shape[1]])))
        return said
