#!/usr/bin/env python3
"""Train a small convolutional network on handwritten digits, with gradient averaging and with GRAWA averaging.

Run it under Horovod, beside hvd.DistributedOptimizer, or under torchrun, beside DistributedDataParallel:

    horovodrun -np 4 -H localhost:4 python examples/digits.py
    torchrun --nproc-per-node 4 examples/digits.py

Every worker has its own share of the digits that come with scikit-learn. Both runs use the same training function; two
lines of it differ. Ends with a table and a picture of test accuracy over communicated bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import grawa_hvd

if TYPE_CHECKING:
    from peers import Meter, Peers

TEST_FRACTION = 0.2


@dataclass
class Data:
    """Images [N, 1, H, W] from 0 to 1 and labels [N]: this worker's share to train on, and the common test set."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int

    def to(self, device: torch.device) -> Data:
        """The same on a device."""
        tensors = (self.images, self.labels, self.test_images, self.test_labels)
        return Data(*(tensor.to(device) for tensor in tensors), self.classes)


@dataclass
class Run:
    """What one training run came to.

    Accuracies are of the mean of the workers; `own` ones are of the workers' own models, and the mean over them. Curves
    have a point an epoch: bytes sent by then and accuracy, or accuracy alone.
    """

    name: str
    seed: int
    accuracy: float = 0.0
    own_accuracy: float = 0.0
    communications: int = 0
    bytes: int = 0
    communicating: float = 0.0
    seconds: float = 0.0
    curve: list[tuple[int, float]] = field(default_factory=list)
    own_curve: list[float] = field(default_factory=list)


def load(path: str | None, rank: int, size: int) -> Data:
    """The bundled digits, or a .npz file with `images` [N, H, W] and `labels` [N]; shuffled alike on all ranks."""
    if path is None:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (only this branch needs it)

        bunch = load_digits()
        images, labels = bunch.images, bunch.target
    else:
        with np.load(path) as file:
            images, labels = file["images"], file["labels"]
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / images.max(), dtype=torch.float32).unsqueeze(1)
    y = torch.tensor(labels[order], dtype=torch.int64)
    test = int(len(x) * TEST_FRACTION)
    return Data(x[test:][rank::size], y[test:][rank::size], x[:test], y[:test], int(y.max()) + 1)


class Net(nn.Sequential):
    """Two convolutions and two linear layers: 8 parameter tensors."""

    def __init__(self, data: Data) -> None:
        height, width = data.images.shape[-2:]
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(32 * (height // 2) * (width // 2), 64), nn.ReLU(),
            nn.Linear(64, data.classes),
        )  # fmt: skip


def accuracy(model: nn.Module, data: Data) -> float:
    """The share of test images that the model classifies right, from 0 to 1."""
    with torch.no_grad():
        return (model(data.test_images).argmax(1) == data.test_labels).float().mean().item()


def train(name: str, data: Data, seed: int, options: argparse.Namespace, peers: Peers) -> Run:
    """One run from the same start: the two lines that differ between the optimizers are marked."""
    torch.manual_seed(seed)
    model = Net(data).to(options.device)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
    peers.broadcast(model)
    trained, optimizer, meter = distributed(model, optimizer, name, options, peers)  # <- one: the class

    run = Run(name, seed)
    order = torch.Generator().manual_seed(1000 * seed + peers.rank)
    bar = tqdm(total=options.epochs, desc=f"{name}, seed {seed}", disable=peers.rank != 0,
               file=sys.stdout, leave=False, mininterval=2)  # fmt: skip
    for _ in range(options.epochs):
        start = time.perf_counter()
        for batch in torch.randperm(len(data.images), generator=order).split(options.batch_size)[: options.steps]:
            optimizer.zero_grad()
            loss = functional.cross_entropy(trained(data.images[batch]), data.labels[batch])
            loss.backward()
            report(optimizer, loss, len(batch))
            optimizer.step()
            meter.after_step()
        wait_for(data.images.device)
        run.seconds += time.perf_counter() - start
        with evaluation(optimizer):  # <- two: evaluate the mean of the workers
            run.accuracy = accuracy(model, data)
        run.curve.append((meter.bytes, run.accuracy))
        run.own_curve.append(accuracy(model, data))
        bar.set_postfix(accuracy=f"{run.accuracy:.1%}", refresh=False)
        bar.update()
    bar.close()
    run.own_curve = peers.mean(run.own_curve)
    run.own_accuracy = run.own_curve[-1]
    run.communications, run.bytes, run.communicating = meter.communications, meter.bytes, meter.seconds
    return run


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given: a GPU lags behind the host."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def distributed(
    model: nn.Module, optimizer: torch.optim.Optimizer, name: str, options: argparse.Namespace, peers: Peers
) -> tuple[nn.Module, Any, Meter]:
    """Wrap for the baseline, or wrap the optimizer in ours: the model to train, the optimizer, the meter."""
    if name == peers.baseline:
        return peers.average_gradients(model, optimizer)
    from optimizers import GrawaMeter  # noqa: PLC0415  (see main)

    meter = GrawaMeter()
    averaging = grawa_hvd.DistributedGrawaOptimizer(
        optimizer, named_parameters=model.named_parameters(),
        averaging=name, period=options.period, pull=options.pull, on_round=meter,
    )  # fmt: skip
    return model, averaging, meter


def report(optimizer: Any, loss: Tensor, samples: int) -> None:
    """Tell the policies that go by losses or samples; the baseline has none."""
    if hasattr(optimizer, "report"):
        optimizer.report(loss=loss, samples=samples)


def evaluation(optimizer: Any) -> AbstractContextManager[None]:
    """`optimizer.consensus()` where there is one; under the baseline all workers' models are the same."""
    context: AbstractContextManager[None] = getattr(optimizer, "consensus", nullcontext)()
    return context


def table(runs: list[Run], names: list[str]) -> str:
    """Means over the seeds, with the standard deviation of the accuracy where there are several."""
    columns = {"test accuracy": 16, "own model": 16, "communications": 16, "MB sent": 10, "s comm.": 9, "s in all": 10}
    lines = [" " * 28 + "".join(f"{column:>{width}}" for column, width in columns.items())]
    for name in names:
        mine = [run for run in runs if run.name == name]
        lines.append(
            f"{name:28}{spread([run.accuracy for run in mine]):>16}{spread([run.own_accuracy for run in mine]):>16}"
            f"{mean(mine, 'communications'):>16.0f}{mean(mine, 'bytes') / 1e6:>10.2f}"
            f"{mean(mine, 'communicating'):>9.2f}{mean(mine, 'seconds'):>10.2f}"
        )
    return "\n".join(lines)


def seen(runs: list[Run], names: list[str]) -> str:
    """One sentence: what averaging rarely comes to, beside the baseline."""
    baseline, *others = [[run for run in runs if run.name == name] for name in names]
    share = mean(others[0], "bytes") / max(mean(baseline, "bytes"), 1.0)
    reached = ", ".join(
        f"{name} reaches {mean(own, 'accuracy'):.1%}" for name, own in zip(names[1:], others, strict=True)
    )
    return f"With {share:.1%} of the bytes that {names[0]} sends for {mean(baseline, 'accuracy'):.1%}, {reached}."


def mean(runs: list[Run], what: str) -> float:
    """Mean of one figure."""
    return statistics.mean(getattr(run, what) for run in runs)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation, in percent."""
    if len(values) == 1:
        return f"{values[0]:.1%}"
    return f"{statistics.mean(values):.1%} ± {100 * statistics.stdev(values):.1f}"


def plot(runs: list[Run], names: list[str], options: argparse.Namespace, peers: Peers) -> None:
    """Test accuracy over communicated bytes: a colour an optimizer, thin lines for seeds, a thick one for the mean."""
    import matplotlib  # noqa: PLC0415  (on rank 0 alone)

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    is_crowded = len(names) > 4  # then the legend stands beside the curves
    figure, axes = plt.subplots(figsize=(10 if is_crowded else 7.5, 4.5), layout="constrained")
    for number, name in enumerate(names):
        # At the same epoch all seeds have sent the same bytes; before the first round, nothing.
        mine = np.array([[point for point in run.curve if point[0]] for run in runs if run.name == name])
        if mine.size == 0:
            continue
        sent, right = mine[0, :, 0] / 1e6, 100 * mine[:, :, 1]
        label = name if name == peers.baseline else f"{name}, period {options.period}"
        style = "-" if number < 2 else "--" if number < 10 else ":"  # policies lie close together
        axes.plot(sent, right.mean(axis=0), style, color=f"C{number}", linewidth=2, marker=".", label=label)
        if len(right) > 1:
            axes.plot(sent, right.T, color=f"C{number}", linewidth=0.7, alpha=0.35)
    axes.set(xscale="log", xlabel="MB handed to the collectives by each worker while training",
             ylabel="test accuracy of the mean of the workers (%)")  # fmt: skip
    seeds = "" if options.repeats == 1 else f", {options.repeats} seeds and their mean"
    over = peers.title if peers.launcher is None else f"{peers.title} ({peers.launcher})"
    axes.set_title(f"Handwritten digits, {options.epochs} epochs{seeds}\n{peers.size} workers over {over}", loc="left")
    axes.set_ylim(80, 100)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25, which="both")
    if axes.has_data():  # one worker sends nothing
        if is_crowded:
            figure.legend(frameon=False, loc="outside right upper")
        else:
            axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 0.3))
    figure.savefig(options.plot, dpi=150)


def results(runs: list[Run], options: argparse.Namespace, peers: Peers) -> dict[str, Any]:
    """What is written as JSON: the figures, and where they were measured."""
    return {
        "command": f"{peers.command} examples/digits.py {' '.join(sys.argv[1:])}".strip(),
        "transport": peers.transport,
        "launcher": peers.launcher,
        "baseline": peers.baseline,
        "options": vars(options),
        "workers": peers.size,
        "versions": {
            "grawa_hvd": grawa_hvd.__version__,
            "horovod": metadata.version("horovod") if peers.transport == "horovod" else None,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {
            "machine": platform.machine(),
            "cpus": len(os.sched_getaffinity(0)),
            "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        },
        "runs": [asdict(run) for run in runs],
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="FILE", help=".npz with images [N, H, W] and labels [N] (default: scikit-learn's digits)")
    add("--averaging", nargs="+", default=["uniform", "lgrawa"], metavar="POLICY",
        help="uniform, lgrawa, mgrawa, grawa, …; several, or all (default: uniform lgrawa)")  # fmt: skip
    add("--period", type=int, default=16, help="local steps from round to round (default: %(default)s)")
    add("--pull", type=float, default=0.5, help="pull toward the centre in a round, 0 to 1 (default: %(default)s)")
    add("--epochs", type=int, default=28, help="passes over each worker's share (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images a step and worker (default: %(default)s)")
    add("--lr", type=float, default=0.1, help="learning rate of SGD with momentum 0.9 (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and order of images (default: %(default)s)")
    add("--repeats", type=int, default=1, help="seeds: --seed, --seed + 1, … (default: %(default)s)")
    add("--transport", choices=("horovod", "torch"), help="what carries models and gradients (default: the launcher's)")
    add("--device", default="cpu", choices=("cpu", "cuda"), help="where to train; workers share the GPUs in turn")
    add("--plot", type=Path, default=Path("demo.png"), help="where the picture goes (default: %(default)s)")
    add("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def main() -> None:
    """Train with the baseline and with our optimizer, in turn, and compare."""
    options = parse()
    # Here, since the benchmarks import this file from elsewhere, for its network alone.
    from optimizers import named_policies  # noqa: PLC0415
    from peers import start  # noqa: PLC0415

    peers = start(options.transport, options.device)
    if options.device == "cuda":
        torch.cuda.set_device(peers.local_rank % torch.cuda.device_count())
    data = load(options.data, peers.rank, peers.size).to(torch.device(options.device))
    # Every rank takes as many steps as the one with the fewest images: the baseline would wait otherwise.
    options.steps = -(-peers.minimum(len(data.images)) // options.batch_size)
    refused: dict[str, str] = {}
    if options.averaging == ["all"]:
        options.averaging, refused = named_policies()
    names = [peers.baseline, *options.averaging]
    seeds = range(options.seed, options.seed + options.repeats)
    runs = [train(name, data, seed, options, peers) for seed in seeds for name in names]
    if peers.rank == 0:
        print(f"\n{table(runs, names)}\n\n{seen(runs, names)}\n")
        for name, reason in refused.items():
            print(f"Left out, as its name alone does not make it: {name} ({reason})")
        if options.json is not None:
            options.json.write_text(json.dumps(results(runs, options, peers), indent=1, default=str) + "\n")
            print(f"All figures: {options.json}")
        plot(runs, names, options, peers)
        print(f"Test accuracy over communicated bytes: {options.plot}")
    peers.stop()


if __name__ == "__main__":
    main()
