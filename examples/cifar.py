#!/usr/bin/env python3
"""Train the networks of the GRAWA paper, from pytorchcv, on CIFAR-10, CIFAR-100 or folders of images.

    horovodrun -np 4 -H localhost:4 python examples/cifar.py --data cifar-10-batches-bin --model resnet20
    torchrun --nproc-per-node 4 examples/cifar.py --data cifar-10-batches-bin --model resnet20

`--data` is what cifar-10-binary.tar.gz or cifar-100-binary.tar.gz unpack to; for resnet50 a folder with train/ and
val/, which have a folder of JPEG files a class, as ImageNet does. Each worker trains on its own share. Weight decay and
the drops of the learning rate are those of the networks' own papers, as in the paper. The rate is that of one worker.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from images import Cifar, Folders, Share, Source
from optimizers import Workers, add_options, distribute
from peers import Peers, start
from torch import Tensor, nn
from torch.nn import functional
from training import Budget, Checkpoints, Log, cosine, device_of, mean_loss, seed_of, stepped
from training import add_options as add_run_options

import grawa_hvd


@dataclass(frozen=True)
class Recipe:
    """How a network is made and trained.

    Attributes:
        network: pytorchcv's name; {} stands for cifar10 or cifar100.
        epochs: passes over the data.
        weight_decay: of SGD.
        drops: where in the run the learning rate drops, as fractions of it.
        factor: by how much.
    """

    network: str
    epochs: int
    weight_decay: float
    drops: tuple[float, ...]
    factor: float = 0.1


RECIPES = {
    "resnet20": Recipe("resnet20_{}", 164, 1e-4, (1 / 2, 3 / 4)),
    "vgg16": Recipe("bn_vgg16", 164, 5e-4, (1 / 2, 3 / 4)),
    "pyramidnet110": Recipe("pyramidnet110_a48_{}", 300, 1e-4, (1 / 2, 3 / 4)),
    "densenet121": Recipe("densenet121", 300, 1e-4, (1 / 2, 3 / 4)),
    "wrn28_10": Recipe("wrn28_10_{}", 200, 5e-4, (0.3, 0.6, 0.8), 0.2),
    "resnet50": Recipe("resnet50", 90, 1e-4, (1 / 3, 2 / 3)),
}


def network(model: str, classes: int) -> nn.Module:
    """A network of pytorchcv for small images of any size; vgg16, which halves them five times, needs 32 pixels.

    Vgg16 gets one linear layer for a head; it is the form with BatchNorm. Densenet121 starts with 3 × 3 convolutions
    instead of 7 × 7 ones with stride 2 and pooling.
    """
    from pytorchcv.model_provider import get_model  # noqa: PLC0415  (so that --help does without it)

    name = RECIPES[model].network.format("cifar10" if classes == 10 else "cifar100")
    net: Any = get_model(name, num_classes=classes)
    pool = nn.AdaptiveAvgPool2d(1)
    if model == "vgg16":
        net.features.add_module("final_pool", pool)
        net.output = nn.Linear(512, classes)
    else:
        net.features.final_pool = pool
    if model == "densenet121":
        net.features.init_block = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    return cast(nn.Module, net)


def source(options: argparse.Namespace, peers: Peers, device: torch.device) -> Source:
    """The data that the network is for."""
    share = Share(peers.rank, peers.size, options.batch_size, options.seed)
    if options.model == "resnet50":
        return Folders(options.data, share, options.crop or 224, device, options.loaders)
    return Cifar(options.data, share, (options.crop or 32, options.padding), device)


def rate(options: argparse.Namespace) -> Callable[[float], float]:
    """Learning rate by fraction of the run."""
    recipe = RECIPES[options.model]
    shapes: dict[str, Callable[[float], float]] = {
        "paper": lambda done: stepped(done, recipe.drops, recipe.factor),
        "cosine": cosine,
        "constant": lambda done: 1.0,
    }
    return lambda done: options.lr * shapes[options.schedule](done)


def fresh_scores(model: nn.Module, data: Source) -> Callable[[], Tensor]:
    """Forward and backward on one random batch, which is the paper's main form of scores."""
    batches = itertools.chain.from_iterable(data.training(-1 - number) for number in itertools.count())

    def score() -> Tensor:
        images, labels = next(batches)
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return score


def evaluate(model: nn.Module, data: Source, peers: Peers) -> float:
    """The share of test images that the model classifies right, from 0 to 1; each rank looks at its own."""
    right, seen = 0, 0
    for images, labels in data.test():
        right += int((model(images).argmax(1) == labels).sum())
        seen += len(labels)
    right_of_all, seen_of_all = peers.mean([float(right), float(seen)])
    return right_of_all / seen_of_all


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Of a batch."""
    return functional.cross_entropy(model(images), labels)


def train(workers: Workers, data: Source, options: argparse.Namespace, peers: Peers, log: Log) -> None:
    """The run, from its start or from a checkpoint."""
    budget = Budget(options.epochs * data.steps, options.minutes, peers)
    checkpoints, epoch, lr = Checkpoints(options.checkpoints, peers), 0, rate(options)
    if options.resume:
        state = checkpoints.load()
        workers.load(state["workers"])
        budget.load(state["budget"])
        epoch, log.epochs = state["epoch"], state["log"]
    while not budget.is_over:
        torch.manual_seed(seed_of(options.seed, peers.rank, epoch))
        losses = []
        with budget.running():
            for images, labels in log.bar(data.training(epoch), data.steps, epoch):
                workers.set_lr(lr(budget.fraction))
                losses.append(workers.step(partial(loss_of, images=images, labels=labels), len(images)))
                if budget.take_step():
                    break
        epoch += 1
        with workers.evaluation() as model:
            accuracy = evaluate(model, data, peers)
            checkpoints.save_model({"model": model.state_dict(), "epoch": epoch, "accuracy": accuracy})
        log.note(budget.steps, {
            "epoch": epoch, "loss": mean_loss(losses, peers), "accuracy": accuracy, "lr": lr(budget.fraction),
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
    add("--data", type=Path, required=True, metavar="FOLDER", help="the images")
    add("--model", choices=RECIPES, default="resnet20", help="the network (default: %(default)s)")
    add("--epochs", type=int, help="passes over each worker's share (default: the network's)")
    add("--batch-size", type=int, default=128, help="images a step and worker (default: %(default)s)")
    add("--lr", type=float, default=0.1, help="of SGD with Nesterov momentum 0.9 (default: %(default)s)")
    add("--weight-decay", type=float, help="of SGD (default: the network's)")
    add("--schedule", choices=("paper", "cosine", "constant"), default="paper", help="how the rate falls")
    add("--crop", type=int, help="side of the crops (default: 32, for resnet50 224); the paper has smaller ones for "
                                 "resnet20, without padding")  # fmt: skip
    add("--padding", type=int, default=4, help="zeros around an image before it is cropped (default: %(default)s)")
    add("--scores", choices=("local", "fresh"), default="local",
        help="gradient norms of training, or of a fresh batch before each round (default: %(default)s)")  # fmt: skip
    add("--loaders", type=int, default=4, help="processes that read JPEG files for a rank (default: %(default)s)")
    add_options(parser)
    add_run_options(parser)
    options = parser.parse_args()
    recipe = RECIPES[options.model]
    options.epochs = recipe.epochs if options.epochs is None else options.epochs
    options.weight_decay = recipe.weight_decay if options.weight_decay is None else options.weight_decay
    return options


def main() -> None:
    """Train, and say how it went."""
    options = parse()
    peers = start(options.transport, options.device)
    device = device_of(options, peers)
    data = source(options, peers, device)
    torch.manual_seed(options.seed)
    model = network(options.model, data.classes).to(device)
    log = Log(options, peers.rank)
    sgd = partial(torch.optim.SGD, lr=options.lr, momentum=0.9, nesterov=True, weight_decay=options.weight_decay)
    workers = distribute(
        model, model.parameters(), sgd, options, peers, on_round=grawa_hvd.tensorboard.RoundWriter(log.writer),
        scores=fresh_scores(model, data) if options.scores == "fresh" else "local",
    )  # fmt: skip
    train(workers, data, options, peers, log)
    log.close(command=peers.command, transport=peers.transport, workers=peers.size, options=vars(options))
    peers.stop()


if __name__ == "__main__":
    main()
