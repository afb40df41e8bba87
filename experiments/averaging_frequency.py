"""How often to average, and with which weights: the poster "Analyzing Model Averaging for Data Parallelism".

(Sridhar & Varadarajan.) Four workers learn scikit-learn's digits by plain SGD (lr 0.1, batches of 8, shards of 274
images), with `DistributedGrawaOptimizer` among workers in threads: uniform weights, pull 1, no proximity. Losses:
**convex**, softmax regression; **strongly convex**, the same plus 0.005·‖w‖²; **non-convex**, a 64-32-10 perceptron.

1. **Frequency.** 2000 steps; periods 1, 8, 64, 512 and 2000; one start for all; all three losses. Measured: steps
   until the mean of the workers classifies 90% of the test images, and accuracy and train loss at the end. Control:
   period 1. Paired by seed: data, shards, start and batches. The poster: frequency has no impact on iteration
   complexity where the loss is convex. Support: the 95% interval of each period's steps to 90% as a multiple of
   period 1's holds 1, and is within 0.5 to 2.
2. **Start and common examples.** 499 steps, one average at the end, or one after every 50 steps; workers start alike
   or each from its own draw; half of each shard the same for all, or none. Measured at the end, 49 steps after the
   last round: accuracy of the mean of the workers, mean accuracy of the workers, and ‖x − mean‖ as a share of ‖mean‖.
   The poster: a shared start is decisive for the non-convex loss, common examples are not. Support: shared minus own
   start is above 0, and common minus disjoint holds 0, for accuracy of the mean; paired 95% intervals.
3. **Best weights**, of the workers of 2 that average once and have disjoint shards: those in the simplex that
   minimise the loss of Σ w_m·x_m on 300 validation images (scipy's SLSQP, from the uniform weights and from near each
   corner). Measured on test images: accuracy by these weights, of the plain mean, and of the worker that is best on
   the validation images. The poster: some 0.5 points for convex losses, though the weights are far from uniform;
   drastic gains for the non-convex one, with weights such as [0, 0, .9, .1]. Support: gains of that size, and a
   largest weight of 0.8 or more.
4. **Closed form**: `experiments.noisy_quadratic` says what the variance of the average must be; checked by 20000
   samples at each of ten settings. Support: all within 4 standard errors.
"""

from __future__ import annotations

import argparse
import warnings
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import grawa_hvd
from experiments import common, digit_splits
from experiments.averaging_frequency_plot import plot
from experiments.averaging_frequency_report import LOSSES, STARTS, summary_of
from experiments.best_weights import best_weights, combined, vectors
from experiments.noisy_quadratic import Quadratic, sampled, variance
from grawa_hvd.simulation import batches
from grawa_hvd.transport.local import LocalTransport, run_workers

WORKERS, BATCH, LR, L2 = 4, 8, 0.1, 0.005
PERIODS = (1, 8, 64, 512)  # of part 1, and one as long as the run
SHORT = 500  # the longer period of part 2, whose runs end a step before it is over
COMMON = (0.0, 0.5)
QUADRATICS = [(Quadratic(b=b), period, 64 // period) for b in (0.0, 3.0) for period in (1, 4, 16, 32, 64)]


class Case(NamedTuple):
    """One run: the loss, the period, whether all start alike, and the share of a shard's images that all have."""

    loss: str
    period: int
    start: str
    common_share: float
    seed: int

    def __str__(self) -> str:
        return f"{self.loss}, period {self.period}, {self.start} start, common {self.common_share:g}, seed {self.seed}"


def network(loss: str, seed: int) -> nn.Module:
    """What a worker trains; initialised by the seed."""
    if loss == "non-convex":
        return digit_splits.perceptron(seed)
    torch.manual_seed(seed)
    return nn.Linear(64, 10)


def criterion(loss: str, model: nn.Module, data: digit_splits.Pair) -> Tensor:
    """The loss of a batch."""
    found = functional.cross_entropy(model(data[0]), data[1])
    if loss == "strongly convex":
        found = found + L2 * sum(parameter.square().sum() for parameter in model.parameters())
    return found


def shards(train: digit_splits.Pair, common_share: float) -> list[digit_splits.Pair]:
    """As many images for each worker; the first of them, by the share, are the same for all."""
    size = len(train[1]) // WORKERS
    rows = torch.arange(WORKERS * size).view(WORKERS, size)
    rows[:, : int(common_share * size)] = torch.arange(int(common_share * size))
    return [(train[0][own], train[1][own]) for own in rows]


def train(case: Case, steps: int, looks: set[int]) -> tuple[list[nn.Module], list[tuple[int, float]]]:
    """Let the four workers train.

    Returns:
        Their networks, and (step, test accuracy of their mean) pairs of the steps in `looks`.
    """
    data = digit_splits.load(case.seed)
    dealt = shards(data.train, case.common_share)
    starts = range(case.seed, case.seed + 1000 * WORKERS, 1000) if case.start == "own" else [case.seed] * WORKERS
    models = [network(case.loss, start) for start in starts]

    def work(transport: LocalTransport) -> list[tuple[int, float]]:
        model, (images, labels), found = models[transport.rank], dealt[transport.rank], []
        optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
            torch.optim.SGD(model.parameters(), lr=LR), model.named_parameters(), process_group=transport,
            averaging="uniform", period=case.period, pull=1.0, proximity=0.0,
        )  # fmt: skip
        drawn = batches(len(labels), BATCH, case.seed, transport.rank)
        for step in range(1, steps + 1):
            rows = next(drawn)
            optimizer.zero_grad()
            criterion(case.loss, model, (images[rows], labels[rows])).backward()
            optimizer.step()
            if step in looks:
                with optimizer.consensus():
                    found.append((step, digit_splits.accuracy(model, data.test) if transport.rank == 0 else 0.0))
        return found

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the initial parameters")  # that they differ is meant
        return models, run_workers(WORKERS, work)[0]


def frequency(case: Case, steps: int) -> dict[str, Any]:
    """A run of part 1; the mean is looked at some twenty times a decade."""
    looks = {round(10 ** (k / 20)) for k in range(200) if 10 ** (k / 20) <= steps} | {steps}
    models, looked = train(case, steps, looks)
    with torch.no_grad():
        loss = criterion(case.loss, combined(models, [1 / WORKERS] * WORKERS), digit_splits.load(case.seed).train)
    return {"accuracies": looked, "train_loss": loss.item()}


def divergence(case: Case, steps: int) -> dict[str, Any]:
    """A run of part 2, and of part 3 if nothing was averaged."""
    models, _ = train(case, steps, set())
    data = digit_splits.load(case.seed)
    own, center = [digit_splits.accuracy(model, data.test) for model in models], vectors(models).mean(dim=0)
    found = {
        "mean": digit_splits.accuracy(combined(models, [1 / WORKERS] * WORKERS), data.test),
        "own": fmean(own),
        "distance": ((vectors(models) - center).norm(dim=1).mean() / center.norm()).item(),
    }
    if case.period > steps:
        validated = [digit_splits.accuracy(model, data.validation) for model in models]
        weights = best_weights(models, partial(criterion, case.loss), data.validation)
        found |= {
            "weights": weights,
            "weighted": digit_splits.accuracy(combined(models, weights), data.test),
            "chosen": own[validated.index(max(validated))],
        }
    return found


def quadratic(number: int, samples: int) -> dict[str, float]:
    """A setting of part 4."""
    problem, period, rounds = QUADRATICS[number]
    found, error = sampled(problem, period, rounds, samples, seed=number)
    return {"b": problem.b, "period": period, "closed_form": variance(problem, period, rounds), "sampled": found,
            "standard_error": error}  # fmt: skip


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("averaging_frequency", __doc__, seeds=5)
    add = options.add_argument
    add("--steps", type=int, default=2000, help="steps of part 1, and its longest period (default: %(default)s)")
    add("--samples", type=int, default=20000, help="of part 4 (default: %(default)s)")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the four parts, compare, print, draw."""
    options = parse(arguments)
    file: Path = options.out / "averaging_frequency.json"
    short = min(SHORT, options.steps)
    periods = [period for period in PERIODS if period < options.steps] + [options.steps]
    cases: dict[str, Any] = {f"quadratic {n}": partial(quadratic, n, options.samples) for n in range(len(QUADRATICS))}
    for place in product(LOSSES, (short, short // 10), STARTS, COMMON, range(options.seeds)):
        cases[f"divergence, {Case(*place)}"] = partial(divergence, Case(*place), short - 1)
    for seed, loss, period in product(range(options.seeds), LOSSES, periods):
        case = Case(loss, period, "shared", 0.0, seed)
        cases[f"frequency, {case}"] = partial(frequency, case, options.steps)
    settings = {"steps": options.steps, "lr": LR, "batch": BATCH, "l2": L2, "samples": options.samples}
    found = common.runs(file, settings, cases)
    summary = summary_of(found)
    common.summarize(file, summary)
    for name, value in summary.items():
        print(f"{name}: {value}")
    plot(found, options.out)


if __name__ == "__main__":
    main()
