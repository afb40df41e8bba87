"""Does a large gradient norm go with a large generalisation gap?

The GRAWA paper (section 4.2, figure 2, appendix B.1) trains 162 ResNet-18 with different hyperparameters and finds
that models with a larger gap (test error − train error) have a larger gradient norm on the whole training set. Its
weights rest on this.

- **Models**: 64-64-10 perceptrons on 300 of scikit-learn's digits (few, so that there is a gap), SGD with momentum
  0.9, 60 epochs; learning rate 0.01, 0.03, 0.1, 0.3 × batches of 8, 32, 128 × weight decay 0, 0.001, 0.01 × 3 seeds:
  108 models.
- **Measured**: the norm of the gradient of the mean cross-entropy over all 300 training images, without weight decay,
  as the paper says; train error; test error on the 1497 others.
- **Support for the claim** would be: Spearman's rank correlation of gap and norm above 0 with its 95% interval
  (bootstrap over models), pooled, and within each weight decay too.
- **Control**: the correlation within each weight decay. Weight decay moves norm and gap by itself: it keeps the
  gradient of the loss away from 0 at the optimum, and reduces the gap. Correlation among models that differ in it
  says nothing of flatness. Also the partial rank correlation given the train loss: a model that has not been trained
  to the end has both a norm and no gap.
- **What it cannot show**: one small network and one data set.
"""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import nn
from torch.nn import functional

from experiments import common, digit_splits
from grawa_hvd.simulation import batches

LRS, BATCHES, DECAYS = (0.01, 0.03, 0.1, 0.3), (8, 32, 128), (0.0, 0.001, 0.01)
IMAGES, EPOCHS, DRAWS = 300, 60, 2000


def train(lr: float, batch: int, decay: float, seed: int, epochs: int) -> dict[str, float]:
    """One model: its errors, its train loss, and its gradient norm on the training set."""
    bunch = digit_splits.load(seed)
    images, labels = (torch.cat(part) for part in zip(*bunch, strict=True))
    model = digit_splits.perceptron(seed, hidden=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    drawn = batches(IMAGES, batch, seed, 0)
    for _ in range(epochs * IMAGES // batch):
        rows = next(drawn)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(images[:IMAGES]), labels[:IMAGES])
    loss.backward()
    norm = nn.utils.parameters_to_vector([p.grad for p in model.parameters() if p.grad is not None]).norm()
    parts = (slice(IMAGES), slice(IMAGES, None))
    errors = [1 - digit_splits.accuracy(model, (images[part], labels[part])) for part in parts]
    return {"norm": norm.item(), "train_loss": loss.item(), "train_error": errors[0], "test_error": errors[1]}


def correlations(models: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Spearman's of gap and norm, plain and given the train loss; each with a 95% bootstrap interval over models."""
    table = np.array([[m["test_error"] - m["train_error"], m["norm"], m["train_loss"]] for m in models])
    rng = np.random.default_rng(0)
    drawn = [_correlation(table[rng.integers(len(table), size=len(table))]) for _ in range(DRAWS)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return {
        kind: (float(found), float(one), float(other))
        for kind, found, one, other in zip(("plain", "given train loss"), _correlation(table), low, high, strict=True)
    }


def _correlation(table: Any) -> tuple[float, float]:
    """Rank correlation of the first two columns, and the same given the third."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.corrcoef(np.apply_along_axis(rankdata, 0, table).T)
        partial_ = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    return float(r[0, 1]), float(partial_)


def plot(models: dict[float, list[dict[str, float]]], summary: dict[str, Any], file: Path) -> None:
    """Gap over norm, a color a weight decay."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for decay, part in models.items():
        found = summary[f"weight decay {decay:g}"]["plain"]
        label = "weight decay {:g}: {:.2f} [{:.2f}, {:.2f}]".format(decay, *found)
        gaps = [100 * (m["test_error"] - m["train_error"]) for m in part]
        axes.plot([m["norm"] for m in part], gaps, "o", alpha=0.65, markersize=5, label=label)
    pooled = "pooled: {:.2f} [{:.2f}, {:.2f}]".format(*summary["pooled"]["plain"])
    axes.set(xscale="log", xlabel="‖gradient‖ over the training set", ylabel="test error − train error (points)")
    axes.set_title(f"Gap over gradient norm; rank correlation, 95%; {pooled}", loc="left", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=110)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("norm_vs_gap", __doc__, seeds=3)
    options.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, correlate, print, draw."""
    options = parse(arguments)
    file: Path = options.out / "norm_vs_gap.json"
    grid = [*product(LRS, BATCHES, DECAYS, range(options.seeds))]
    names = {place: "lr {:g}, batch {}, weight decay {:g}, seed {}".format(*place) for place in grid}
    cases = {name: partial(train, *place, options.epochs) for place, name in names.items()}
    found = common.runs(file, {"epochs": options.epochs, "images": IMAGES}, cases)
    models = {decay: [found[name] for place, name in names.items() if place[2] == decay] for decay in DECAYS}
    summary = {f"weight decay {decay:g}": correlations(part) for decay, part in models.items()}
    summary["pooled"] = correlations([*found.values()])
    common.summarize(file, summary)
    for name, part in summary.items():
        for kind, (middle, low, high) in part.items():
            print(f"{name}, {kind}: {middle:.2f} [{low:.2f}, {high:.2f}]")
    plot(models, summary, options.out / "norm_vs_gap.png")


if __name__ == "__main__":
    main()
