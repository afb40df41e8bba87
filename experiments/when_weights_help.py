"""When do unequal weights of the workers help? Every arm in every condition, paired by seed. See experiments/README.md.

    python -m experiments.when_weights_help
    python -m experiments.when_weights_help --splits 8          # twice the seeds; what is there is kept
    python -m experiments.when_weights_help --minutes 0         # only the table, the plot and the verdict

Each cell, one condition, arm and split of five seeds, is written when it is finished, and skipped the next time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from tqdm import tqdm

from experiments import cell
from experiments.arms import ARMS, pairs
from experiments.conditions import CONDITIONS
from experiments.digits import MODELS
from experiments.plot import plot
from experiments.store import Store
from experiments.verdict import TUNING_SPLIT, compared, decisions, table, to_uniform

RESULTS = Path(__file__).parent / "results"
RATES, TUNED_IN = (0.01, 0.03, 0.1), ("iid", "skew_0.1", "noisy_3")


def tuned(store: Store, training: cell.Training, conditions: Iterable[str]) -> cell.Training:
    """The same with the learning rate of the best held-out accuracy of uniform, on seeds of its own."""
    todo = [(lr, name) for lr in RATES for name in conditions]
    reached = dict.fromkeys(RATES, 0.0)
    for lr, name in tqdm(todo, desc="learning rates", unit="cell"):
        key = {"condition": name, "arm": "uniform", "split": TUNING_SPLIT, "lr": lr}
        found = store.find(**key)
        if found is None:
            found = {**key, **cell.run(name, "uniform", TUNING_SPLIT, replace(training, lr=lr))}
            store.add(found)
        reached[lr] += sum(found["held_out"])
    return replace(training, lr=max(RATES, key=reached.__getitem__))


def fill(store: Store, training: cell.Training, options: argparse.Namespace) -> bool:
    """Run the cells that are missing, until the time is over; whether all are there now."""
    end = time.monotonic() + 60 * options.minutes
    todo = [(*pair, split) for pair in pairs(options.conditions, options.arms) for split in range(options.splits)]
    for name, arm, split in (bar := tqdm(todo, desc="cells", unit="cell")):
        bar.set_postfix_str(f"{name} {arm}")
        key = {"condition": name, "arm": arm, "split": split, "lr": training.lr}
        if store.find(**key) is not None:
            continue
        if time.monotonic() >= end:
            return False
        store.add({**key, **cell.run(name, arm, split, training)})
    return True


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", choices=sorted(MODELS), default="mlp", help="what is trained (default: %(default)s)")
    add("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS), metavar="NAME",
        help="of those in README.md (default: all)")  # fmt: skip
    add("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="NAME",
        help="likewise; uniform among them, for the others are compared with it (default: all)")  # fmt: skip
    add("--splits", type=int, default=4, help="of five seeds each, at least 1 (default: %(default)s)")
    add("--rounds", type=int, default=20, help="of 32 local steps, at least 1 (default: %(default)s)")
    add("--minutes", type=float, default=float("inf"), help="start no cell after so many minutes (default: no limit)")
    add("--json", type=Path, help="where results are, and go (default: experiments/results/when_weights_help.json, "
        "with the model's name unless it is mlp); the plot goes beside it")  # fmt: skip
    options = parser.parse_args(arguments)
    for name in ("splits", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, but is {getattr(options, name)}")
    if "uniform" not in options.arms:
        parser.error("--arms must have uniform among them, for the others are compared with it")
    if options.json is None:
        options.json = RESULTS / f"when_weights_help{'' if options.model == 'mlp' else '_' + options.model}.json"
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and say what it comes to."""
    options = parse(arguments)
    torch.set_num_threads(1)  # the tensors are small
    training = cell.Training(model=options.model, rounds=options.rounds)
    settings = {name: value for name, value in asdict(training).items() if name != "lr"}
    store = Store(options.json, settings)
    training = tuned(store, training, [name for name in TUNED_IN if name in options.conditions] or options.conditions)
    is_complete = fill(store, training, options)
    rows = compared(store.cells)
    if rows:
        plot(rows, options.json.with_suffix(".png"))
        print(f"\nlearning rate {training.lr}\n\n{table(rows, to_uniform)}\n\n" + "\n".join(decisions(rows)))
    if not is_complete:
        print("\nCells are missing: run this again to go on.")


if __name__ == "__main__":
    main()
