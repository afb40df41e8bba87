"""The GRAWA paper's motivating example (section 4.1, appendix A): does a weighted mean end in a flatter valley?

f(x) = −mean(sin(10·ln x)) over x in [0.25, 10]². All minima have f = −1; ∂²f/∂x² ~ 50/x² there, so the valleys far
from the origin are the flat ones. Four workers start in the corners of a rectangle, take steps of SGD (lr 0.01), and
average every 4 steps with pull 0.5, as in the paper's appendix A.

- **Arms**: EASGD, LSGD, GRAWA, MGRAWA, LGRAWA (a coordinate is a layer), each by `DistributedGrawaOptimizer` among
  workers in threads. The norms are of a fresh gradient at the round, the paper's main form.
- **Control**: uniform weights with the same period, pull and proximity.
- **Starts**: the corners of the box, as in the paper; and those of 40 rectangles drawn at random, the same for all
  arms, whose corners are dealt to the workers at random. The latter with exact gradients, and with Gaussian noise of
  standard deviation 1 in each coordinate of each gradient, the scores' own included.
- **Measured**: ‖∇²f‖_F at the bottom of the valley in which the mean of the workers is after 500 steps: the valley is
  the question, not the place in it.
- **Support for the claim** would be: of the starts at which an arm and uniform end in different valleys,
  significantly more than half (sign test, 5%) are ones where the arm's is flatter. This, for each arm, with and
  without noise.
- **Also**: GRAWA, MGRAWA, LGRAWA beside EASGD and LSGD, which is what the paper shows; but those two differ from them
  in how workers are pulled too, so it says little of the weights.
- **What it cannot show**: |∂f/∂x| ≤ 5/x, so on this function the gradient is small where the valleys are flat, also
  off the minima. A network's loss need not be so.
"""

from __future__ import annotations

import argparse
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest
from torch import nn

import grawa_hvd
from experiments import common
from experiments.vincent_plot import plot
from grawa_hvd.averaging import EASGD, GRAWA, LGRAWA, LSGD, MGRAWA, Mix, Uniform
from grawa_hvd.transport.local import LocalTransport, run_workers

ARMS: dict[str, Mix] = {
    "easgd": EASGD(), "lsgd": LSGD(), "uniform": Uniform(),
    "grawa": GRAWA(floor=0.0), "mgrawa": MGRAWA(floor=0.0), "lgrawa": LGRAWA(floor=0.0),
}  # fmt: skip
LOWEST, HIGHEST = 0.25, 10.0
LR, PERIOD, PULL, NOISE = 0.01, 4, 0.5, 1.0
SAME = 1e-9  # Hessian norms that differ by less, relatively, are those of one valley, or of its mirror image
Point = tuple[float, float]


def value(point: Point) -> float:
    """f."""
    return -sum(math.sin(10 * math.log(x)) for x in point) / 2


def derivative(x: float) -> float:
    """∂f/∂x."""
    return -5 * math.cos(10 * math.log(x)) / x


def hessian_norm(point: Point) -> float:
    """‖∇²f‖_F; the Hessian is diagonal, with ∂²f/∂x² = (50·sin(10·ln x) + 5·cos(10·ln x)) / x²."""
    angles = [10 * math.log(x) for x in point]
    return math.hypot(*((50 * math.sin(a) + 5 * math.cos(a)) / x**2 for a, x in zip(angles, point, strict=True)))


def corners(start: int | None) -> list[Point]:
    """Where the four workers start: in the box's corners, or in those of the rectangle of a number, shuffled."""
    if start is None:
        return [(LOWEST, LOWEST), (LOWEST, HIGHEST), (HIGHEST, LOWEST), (HIGHEST, HIGHEST)]
    rng = np.random.default_rng(start)
    (left, right), (low, high) = np.sort(rng.uniform(LOWEST, HIGHEST, (2, 2)), axis=1).tolist()
    found = [(left, low), (left, high), (right, low), (right, high)]
    return [found[number] for number in rng.permutation(4)]


def train(transport: LocalTransport, averaging: str, start: int | None, noise: float, steps: int) -> list[Point]:
    """One worker: where it is at first and after each step. Each coordinate is a parameter."""
    rng = np.random.default_rng([start or 0, transport.rank])
    begin = corners(start)[transport.rank]
    point = nn.ParameterList([torch.tensor(x, dtype=torch.float64) for x in begin])

    def backward() -> None:
        for x in point:
            x.grad = torch.full_like(x, derivative(x.item()) + noise * rng.normal())
        optimizer.report(loss=value((point[0].item(), point[1].item())))

    optimizer: Any = grawa_hvd.DistributedGrawaOptimizer(
        torch.optim.SGD(point.parameters(), lr=LR), point.named_parameters(), process_group=transport,
        averaging=ARMS[averaging], period=PERIOD, pull=PULL, scores=backward if "grawa" in averaging else "local",
    )  # fmt: skip
    path = [begin]
    for _ in range(steps):
        backward()
        optimizer.step()
        with torch.no_grad():
            for x in point:
                x.clamp_(LOWEST, HIGHEST)
        path.append((point[0].item(), point[1].item()))
    return path


def bottom(point: Point) -> Point:
    """The minimum of the valley that a point is in: sin(10·ln x) = 1 at 10·ln x = π/2 + 2πk."""

    def nearest(x: float) -> float:
        k = round((10 * math.log(x) - math.pi / 2) / (2 * math.pi))
        return math.exp((math.pi / 2 + 2 * math.pi * k) / 10)

    return nearest(point[0]), nearest(point[1])


def run(averaging: str, start: int | None, noise: float, steps: int) -> dict[str, Any]:
    """All four workers; how flat it is where their mean ends, and of the paper's own start also their paths."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the initial parameters")  # that they differ is meant
        paths = run_workers(4, partial(train, averaging=averaging, start=start, noise=noise, steps=steps))
    x, y = np.mean([path[-1] for path in paths], axis=0).tolist()
    found = {"mean": [x, y], "value": value((x, y)), "hessian_norm": hessian_norm(bottom((x, y)))}
    if start is None:
        found["paths"] = np.round([path[::2] for path in paths], 3).tolist()
    return found


def name(averaging: str, start: int | None, noise: float) -> str:
    """Of a run."""
    return f"{averaging}, {'the box' if start is None else f'rectangle {start}'}, noise {noise:g}"


def ended(found: dict[str, Any], averaging: str, noise: float, seeds: int) -> dict[str, Any]:
    """Where an arm ends over the random starts: how often in the flattest valley of all arms, how flat, how deep."""
    norms = {arm: [found[name(arm, s, noise)]["hessian_norm"] for s in range(seeds)] for arm in ARMS}
    flattest = np.array(norms[averaging]) <= np.min([*norms.values()], axis=0) * (1 + SAME)
    values = np.array([found[name(averaging, s, noise)]["value"] for s in range(seeds)])
    return {
        "flattest": common.share(int(flattest.sum()), seeds),
        "median_hessian_norm": float(np.median(norms[averaging])),
        "not_in_a_valley": int((values > -0.99).sum()),
    }


def compared(found: dict[str, Any], averaging: str, control: str, noise: float, seeds: int) -> dict[str, Any]:
    """An arm beside another over the random starts: how often flatter, how often sharper, and the sign test."""
    norms = [[found[name(arm, s, noise)]["hessian_norm"] for s in range(seeds)] for arm in (averaging, control)]
    ratios = np.array(norms[0]) / np.array(norms[1])
    flatter, sharper = int((ratios < 1 - SAME).sum()), int((ratios > 1 + SAME).sum())
    decided = flatter + sharper
    return {
        "flatter": flatter,
        "sharper": sharper,
        "share_flatter": common.share(flatter, decided) if decided else None,
        "p_sign_test": float(binomtest(flatter, decided).pvalue) if decided else 1.0,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    options = common.parser("vincent", __doc__, seeds=40)
    options.add_argument("--steps", type=int, default=500, help="steps of SGD (default: %(default)s)")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run, compare, print, draw."""
    options = parse(arguments)
    file: Path = options.out / "vincent.json"
    settings = {"lr": LR, "period": PERIOD, "pull": PULL, "noise": NOISE, "steps": options.steps}
    todo: list[tuple[str, int | None, float]] = [(arm, None, 0.0) for arm in ARMS]
    todo += [(arm, start, noise) for noise in (0.0, NOISE) for start in range(options.seeds) for arm in ARMS]
    found = common.runs(file, settings, {name(*case): partial(run, *case, options.steps) for case in todo})
    pairs = [(arm, control) for control in ("uniform", "easgd", "lsgd") for arm in ARMS if arm != control]
    summary: dict[str, Any] = {}
    for noise in (0.0, NOISE):
        summary |= {f"{arm}, noise {noise:g}": ended(found, arm, noise, options.seeds) for arm in ARMS}
        for arm, control in pairs:
            summary[f"{arm} beside {control}, noise {noise:g}"] = compared(found, arm, control, noise, options.seeds)
    common.summarize(file, summary)
    for arm in ARMS:
        box = found[name(arm, None, 0.0)]
        print(f"{arm}, the box: ends at {box['mean']}, ‖∇²f‖ {box['hessian_norm']:.3g}")
    for case, row in summary.items():
        print(f"{case}: {row}")
    plot(found, summary, options.out)


if __name__ == "__main__":
    main()
