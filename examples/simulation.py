#!/usr/bin/env python3
"""Simulate 256 workers that average their models on handwritten digits: no launcher, one process.

    python examples/simulation.py
    python examples/simulation.py --noisy 0.25 --seeds 5

The digits that come with scikit-learn are dealt out among the workers; each trains a small network on its few and
averages with the others every `--period` steps, by each of the policies in turn, from the same start and on the same
batches. Ends with a table, and a picture of test accuracy over steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import grawa_hvd
from grawa_hvd.simulation import split

Pair = tuple[Tensor, Tensor]


@dataclass
class Run:
    """One policy with one seed: test accuracy of the mean of the workers at some steps, from 0 to 1, and the time."""

    averaging: str
    seed: int
    accuracies: list[tuple[int, float]]
    seconds: float

    @property
    def accuracy(self) -> float:
        """At the end."""
        return self.accuracies[-1][1]


def load() -> tuple[Pair, Pair]:
    """Images [N, 64] from 0 to 1 and labels [N]: four fifths to train on, one to test; shuffled, always alike."""
    bunch = load_digits()
    images, labels = torch.tensor(bunch.data / 16, dtype=torch.float32), torch.tensor(bunch.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test = len(images) // 5
    return (images[order[test:]], labels[order[test:]]), (images[order[:test]], labels[order[:test]])


def shares(train: Pair, options: argparse.Namespace, seed: int) -> list[Pair]:
    """Each worker's share; the first of them, as many as `--noisy` says, have random labels."""
    dealt = split(*train, options.workers, seed)
    noisy, generator = round(options.noisy * options.workers), torch.Generator().manual_seed(seed)
    for worker in range(noisy):
        images, labels = dealt[worker]
        dealt[worker] = images, torch.randint(0, 10, labels.shape, generator=generator)
    return dealt


def accuracy(model: nn.Module, test: Pair) -> float:
    """The share of test images that the model classifies right."""
    return (model(test[0]).argmax(1) == test[1]).float().mean().item()


def simulated(averaging: str, seed: int, options: argparse.Namespace) -> Run:
    """One run."""
    train, test = load()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 10))
    result = grawa_hvd.simulate(
        model, functional.cross_entropy, shares(train, options, seed),
        optimizer=partial(torch.optim.SGD, lr=options.lr, momentum=0.9),
        steps=options.steps, batch_size=options.batch_size, averaging=averaging, period=options.period,
        pull=options.pull, seed=seed, evaluate=partial(accuracy, test=test), every=options.period, progress=False,
    )  # fmt: skip
    return Run(averaging, seed, result.evaluations, result.seconds)


def table(runs: list[Run], names: list[str]) -> str:
    """Means over seeds ± their standard deviation; differences from the first policy, paired by seed, ± 95%."""
    lines = [f"{'':10}{'test accuracy':>18}{'minus ' + names[0]:>20}{'seconds a run':>16}"]
    base = [run.accuracy for run in runs if run.averaging == names[0]]
    for name in names:
        mine = [run for run in runs if run.averaging == name]
        found = [100 * run.accuracy for run in mine]
        more = [value - 100 * other for value, other in zip(found, base, strict=True)]
        lines.append(
            f"{name:10}{spread(found, 1):>18}{'' if name == names[0] else spread(more, interval(len(more))):>20}"
            f"{statistics.mean(run.seconds for run in mine):>16.1f}"
        )
    return "\n".join(lines)


def spread(values: list[float], factor: float) -> str:
    """Mean ± so many standard deviations."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {factor * statistics.stdev(values):.1f}"


def interval(count: int) -> float:
    """Half of a 95% interval of the mean of so many values (Student's t), in their standard deviations."""
    from scipy.stats import t  # noqa: PLC0415  (needed for several seeds alone)

    return float(t.ppf(0.975, count - 1)) / count**0.5 if count > 1 else 0.0


def plot(runs: list[Run], names: list[str], options: argparse.Namespace) -> None:
    """Test accuracy over steps: a colour a policy, thin lines for seeds, a thick one for their mean."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for number, name in enumerate(names):
        curves = [[100 * value for _, value in run.accuracies] for run in runs if run.averaging == name]
        steps = [step for step, _ in next(run for run in runs if run.averaging == name).accuracies]
        mean = [statistics.mean(values) for values in zip(*curves, strict=True)]
        style = "-" if number < 2 else "--"  # policies lie close together
        axes.plot(steps, mean, style, color=f"C{number}", linewidth=2, label=name)
        for curve in curves if len(curves) > 1 else []:
            axes.plot(steps, curve, color=f"C{number}", linewidth=0.7, alpha=0.35)
    noisy = f", {options.noisy:.0%} of them with random labels" if options.noisy else ""
    axes.set_title(f"Handwritten digits, {options.workers} simulated workers{noisy}", loc="left")
    axes.set(
        xlabel=f"local steps, a round every {options.period}", ylabel="test accuracy of the mean of the workers (%)"
    )
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(options.plot, dpi=150)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--averaging", nargs="+", default=["uniform", "lgrawa", "mgrawa"], metavar="POLICY",
        help="policies; others are compared with the first (default: uniform lgrawa mgrawa)")  # fmt: skip
    add("--workers", type=int, default=256, help="M (default: %(default)s)")
    add("--noisy", type=float, default=0.0, help="share of workers with random labels, 0 to 1 (default: %(default)s)")
    add("--steps", type=int, default=320, help="local steps of each worker (default: %(default)s)")
    add("--batch-size", type=int, default=4, help="images a step and worker (default: %(default)s)")
    add("--period", type=int, default=16, help="local steps from round to round (default: %(default)s)")
    add("--pull", type=float, default=0.5, help="pull toward the centre in a round, 0 to 1 (default: %(default)s)")
    add("--lr", type=float, default=0.03, help="learning rate of SGD with momentum 0.9 (default: %(default)s)")
    add("--hidden", type=int, default=32, help="units of the hidden layer (default: %(default)s)")
    add("--seeds", type=int, default=1, help="runs a policy, of seeds 0, 1, … (default: %(default)s)")
    add("--plot", type=Path, default=Path("simulation.png"), help="where the picture goes (default: %(default)s)")
    add("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def main() -> None:
    """Simulate each policy with each seed, and compare."""
    options = parse()
    names: list[str] = options.averaging
    todo = [(name, seed) for seed in range(options.seeds) for name in names]
    runs = [simulated(name, seed, options) for name, seed in tqdm(todo, desc="runs", unit="run")]
    print(f"\n{table(runs, names)}\n")
    plot(runs, names, options)
    print(f"Test accuracy over steps: {options.plot}")
    if options.json is not None:
        versions = {"grawa_hvd": grawa_hvd.__version__, "torch": torch.__version__}
        found = {"versions": versions, "options": vars(options), "runs": [asdict(run) for run in runs]}
        options.json.write_text(json.dumps(found, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
