#!/usr/bin/env python3
"""Train a small transformer to tell the next byte of this repository's own documents and sources, or of --text.

    horovodrun -np 4 -H localhost:4 python examples/gpt.py
    torchrun --nproc-per-node 4 examples/gpt.py --averaging uniform --pull 1 --outer-lr 0.7 --outer-momentum 0.9

The second line is DiLoCo. Each worker reads its own part of the text. The last tenth of each file is held out, and the
loss on it, in nats a byte, is that of the mean of the workers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from optimizers import Workers, add_options, distribute
from peers import Peers, start
from torch import Tensor, nn
from torch.nn import functional
from training import Budget, Checkpoints, Log, cosine, device_of, mean_loss, seed_of
from training import add_options as add_run_options

import grawa_hvd

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "grawa_hvd", "csrc", "examples", "benchmarks", "scripts", "tests")
SUFFIXES = (".md", ".py", ".pyi", ".cpp", ".cu", ".h", ".cuh")
BYTES = 256
HELD_OUT = 10  # one byte in so many


class GPT(nn.Module):
    """A decoder-only transformer over bytes, of PyTorch's own layers.

    Args:
        width: of its vectors.
        layers: how many.
        heads: of attention, in each.
        context: the longest text that it looks at, in bytes.
    """

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(BYTES, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        # Nested tensors are for padding, which there is none of.
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, BYTES, bias=False)
        self.apply(small_weights_)

    def forward(self, text: Tensor) -> Tensor:
        """Of bytes [N, T], for each place the logits of the next byte, [N, T, 256]."""
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        vectors = self.bytes(text) + self.places.weight[:length]
        logits: Tensor = self.head(self.layers(vectors, mask=mask, is_causal=True))
        return logits


def small_weights_(module: nn.Module) -> None:
    """Normal with deviation .02, as GPT-2's; layers of an encoder would be copies of one another otherwise."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


class Text:
    """Bytes to train on and bytes held out.

    Args:
        files: what is read.
        context: bytes that a model looks at.
        batch_size: windows a batch.
        peers: the ranks; each trains on its own part, and is tested on its own.
        device: where batches are.

    Raises:
        ValueError: if a rank's part is shorter than one window.
    """

    def __init__(self, files: list[Path], context: int, batch_size: int, peers: Peers, device: torch.device) -> None:
        texts = [file.read_bytes() for file in files]
        kept = [len(text) - len(text) // HELD_OUT for text in texts]
        self._device, self._batch_size, self._window = device, batch_size, torch.arange(context + 1)
        self._training = self._part([text[:end] for text, end in zip(texts, kept, strict=True)], peers)
        self._test = self._part([text[end:] for text, end in zip(texts, kept, strict=True)], peers)

    def _part(self, texts: list[bytes], peers: Peers) -> Tensor:
        whole = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
        part = whole[: len(whole) // peers.size * peers.size].view(peers.size, -1)[peers.rank]
        if len(part) < len(self._window):
            raise ValueError(
                f"a worker's part of the text, and of what is held out of it, must have at least --context + 1 = "
                f"{len(self._window)} bytes, but one has {len(part)}"
            )
        return part

    def _windows(self, text: Tensor, starts: Tensor) -> Tensor:
        return text[starts[:, None] + self._window].to(self._device, torch.int64)

    def training(self, seed: int, batches: int) -> Iterator[Tensor]:
        """Windows [N, context + 1] from random places."""
        generator = torch.Generator().manual_seed(seed)
        places = len(self._training) - len(self._window) + 1
        for _ in range(batches):
            yield self._windows(self._training, torch.randint(places, (self._batch_size,), generator=generator))

    def test(self, batches: int) -> Iterator[Tensor]:
        """Windows one after another, at most so many batches of them."""
        starts = torch.arange(0, len(self._test) - len(self._window) + 1, len(self._window))
        for some in starts.split(self._batch_size)[:batches]:
            yield self._windows(self._test, some)


def own_text() -> list[Path]:
    """The documents and sources of this checkout."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return sorted([*found, *ROOT.glob("*.md")])


def next_byte_loss(model: nn.Module, windows: Tensor) -> Tensor:
    """Mean over all places, in nats a byte."""
    logits = model(windows[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def evaluate(model: nn.Module, text: Text, batches: int, peers: Peers) -> float:
    """The loss on what is held out; each rank looks at its own part."""
    parts = [(next_byte_loss(model, windows).item() * len(windows), len(windows)) for windows in text.test(batches)]
    total, count = peers.mean([float(sum(column)) for column in zip(*parts, strict=True)])
    return total / count


def decaying(model: nn.Module, decay: float) -> list[dict[str, object]]:
    """Two groups of parameters: matrices, which decay, and biases and norms, which do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def train(workers: Workers, text: Text, options: argparse.Namespace, peers: Peers, log: Log) -> None:
    """The run, from its start or from a checkpoint; an epoch is what lies between two evaluations."""
    budget = Budget(options.steps, options.minutes, peers)
    checkpoints, epoch = Checkpoints(options.checkpoints, peers), 0
    if options.resume:
        state = checkpoints.load()
        workers.load(state["workers"])
        budget.load(state["budget"])
        epoch, log.epochs = state["epoch"], state["log"]
    while not budget.is_over:
        losses = []
        windows = text.training(seed_of(options.seed, peers.rank, epoch), options.evaluate_every)
        with budget.running():
            for batch in log.bar(windows, options.evaluate_every, epoch):
                workers.set_lr(options.lr * cosine(budget.fraction, options.warmup, last=0.1))
                losses.append(workers.step(lambda model, x=batch: next_byte_loss(model, x), len(batch)))
                if budget.take_step():
                    break
        epoch += 1
        with workers.evaluation() as model:
            held_out = evaluate(model, text, options.test_batches, peers)
            checkpoints.save_model({"model": model.state_dict(), "steps": budget.steps, "loss": held_out})
        log.note(budget.steps, {
            "loss": mean_loss(losses, peers), "held-out loss": held_out,
            "communications": workers.meter.communications, "bytes": workers.meter.bytes,
            "communicating": workers.meter.seconds, "seconds": budget.seconds,
        })  # fmt: skip
        checkpoints.save(budget.steps, {
            "workers": workers.state(), "budget": budget.state(), "epoch": epoch, "log": log.epochs,
        })  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, nargs="+", metavar="FILE", help="what to read (default: this repository)")
    add("--width", type=int, default=128, help="of the transformer (default: %(default)s)")
    add("--layers", type=int, default=4, help="of the transformer (default: %(default)s)")
    add("--heads", type=int, default=4, help="of its attention (default: %(default)s)")
    add("--context", type=int, default=128, help="bytes that it looks at (default: %(default)s)")
    add("--steps", type=int, default=1000, help="of each worker (default: %(default)s)")
    add("--batch-size", type=int, default=16, help="windows a step and worker (default: %(default)s)")
    add("--lr", type=float, default=1e-3, help="largest rate of AdamW; a cosine takes it to a tenth of that "
                                               "(default: %(default)s)")  # fmt: skip
    add("--warmup", type=float, default=0.05, help="fraction of the run in which the rate rises (default: %(default)s)")
    add("--weight-decay", type=float, default=0.1, help="of matrices (default: %(default)s)")
    add("--evaluate-every", type=int, default=100, help="steps (default: %(default)s)")
    add("--test-batches", type=int, default=20, help="at most so many a worker (default: %(default)s)")
    add_options(parser)
    add_run_options(parser)
    return parser.parse_args()


def main() -> None:
    """Train, and say how it went."""
    options = parse()
    peers = start(options.transport, options.device)
    device = device_of(options, peers)
    text = Text(options.text or own_text(), options.context, options.batch_size, peers, device)
    torch.manual_seed(options.seed)
    model = GPT(options.width, options.layers, options.heads, options.context).to(device)
    log = Log(options, peers.rank)
    workers = distribute(
        model, decaying(model, options.weight_decay), partial(torch.optim.AdamW, lr=options.lr), options, peers,
        on_round=grawa_hvd.tensorboard.RoundWriter(log.writer),
    )  # fmt: skip
    train(workers, text, options, peers, log)
    log.close(command=peers.command, transport=peers.transport, workers=peers.size, options=vars(options))
    peers.stop()


if __name__ == "__main__":
    main()
