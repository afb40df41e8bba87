"""When do unequal weights of the workers help? Arms in conditions, paired by seed. See experiments/README.md.

    python -m experiments.when_weights_help
    python -m experiments.when_weights_help --models text --arms uniform edit     # a part of it
    python -m experiments.when_weights_help --minutes 0                 # only the tables, the plots and the verdict

Each cell, one model, condition, arm, learning rate and split of the data, is written when it is finished, and skipped
the next time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from experiments import cell
from experiments.arms import ARMS
from experiments.cell import Key
from experiments.plot import plot
from experiments.rates import TUNING_SPLIT, reached, search, sources
from experiments.rules import decisions
from experiments.store import Store
from experiments.tasks import TASKS, Task
from experiments.verdict import compared, table, to_uniform

RESULTS = Path(__file__).parent / "results"
FIRST, OTHERS = list(ARMS)[:4], list(ARMS)[4:11]


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Attributes:
        model: a name of `TASKS`; arms: of `ARMS`; splits: of five seeds each.
    """

    model: str
    arms: list[str]
    splits: int


STAGES = [
    Stage("mlp", FIRST, 4), Stage("convolutions", FIRST, 1), Stage("text", FIRST, 1),
    Stage("convolutions", FIRST, 2), Stage("text", FIRST, 2), Stage("mlp", OTHERS, 4),
]  # fmt: skip


class TimeIsOverError(Exception):
    """No cell is to be started any more."""


@dataclass(frozen=True)
class Desk:
    """Where cells of one model are found, or made.

    Attributes:
        task: of the model; store: its cells.
        end: when no cell is started any more, on the monotonic clock.
    """

    task: Task
    store: Store
    end: float

    def cell(self, key: Key, seeds: int = cell.SEEDS) -> dict[str, object]:
        """The cell, run if it is not there.

        Raises:
            TimeIsOverError: if it is not there and the time is over.
        """
        found = self.store.find(**vars(key))
        if found is None:
            if time.monotonic() >= self.end:
                raise TimeIsOverError
            found = cell.run(self.task, key, seeds)
            self.store.add(found)
            print(f"{found['seconds']:6.1f} s  {key}", flush=True)
        return found

    def rate(self, condition: str, arm: str) -> float:
        """The learning rate of an arm in a condition; tuning cells are run as needed."""

        def score(lr: float) -> float:
            keys = [Key(name, arm, TUNING_SPLIT, lr) for name in sources(self.task, condition, arm)]
            return sum(reached(self.cell(key, self.task.tuning_seeds)) for key in keys)

        return search(self.task.rates, self.task.first, score)


def keys(desk: Desk, stage: Stage, conditions: list[str]) -> Iterator[Key]:
    """The cells of a stage: arm after arm, each in all its conditions."""
    for arm in stage.arms:
        for condition in conditions:
            if ARMS[arm].runs_in(desk.task.conditions[condition]):
                lr = desk.rate(condition, arm)
                yield from (Key(condition, arm, split, lr) for split in range(stage.splits))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=list(TASKS), metavar="NAME", help=f"of {', '.join(TASKS)} (default: what the "
        "protocol says, with its arms and seeds)")  # fmt: skip
    add("--conditions", nargs="+", metavar="NAME", help="of the protocol's (default: all that a model has)")
    add("--arms", nargs="+", choices=list(ARMS), metavar="NAME", help="with --models; uniform among them, for the "
        "others are compared with it (default: the protocol's)")  # fmt: skip
    add("--splits", type=int, help="with --models: of five seeds each, at least 1 (default: 4)")
    add("--rounds", type=int, help="of 32 local steps, at least 1 (default: the protocol's)")
    add("--minutes", type=float, default=float("inf"), help="start no cell after so many minutes (default: no limit)")
    add("--out", type=Path, default=RESULTS, help="folder of results and plots (default: experiments/results)")
    options = parser.parse_args(arguments)
    for name in ("splits", "rounds"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, but is {value}")
    if options.arms is not None and "uniform" not in options.arms:
        parser.error("--arms must have uniform among them, for the others are compared with it")
    if options.models is None and (options.arms or options.splits):
        parser.error("--arms and --splits go with --models")
    return options


def desk_of(model: str, options: argparse.Namespace, end: float) -> Desk:
    """Where the cells of a model are."""
    task = TASKS[model] if options.rounds is None else replace(TASKS[model], rounds=options.rounds)
    settings = {
        "model": model, "rounds": task.rounds, "period": cell.PERIOD, "batch_size": task.batch_size,
        "pull": cell.PULL, "seeds": cell.SEEDS,
    }  # fmt: skip
    return Desk(task, Store(file_of(model, options.out), settings), end)


def file_of(model: str, folder: Path) -> Path:
    """The results of a model."""
    return folder / f"when_weights_help{'' if model == 'mlp' else '_' + model}.json"


def fill(desks: dict[str, Desk], stages: list[Stage], wanted: list[str] | None) -> bool:
    """Run the cells that are missing, until the time is over; whether all are there now."""
    try:
        for stage in stages:
            desk = desks[stage.model]
            for key in keys(desk, stage, [name for name in desk.task.conditions if name in (wanted or [name])]):
                desk.cell(key)
    except TimeIsOverError:
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, and say what it comes to."""
    options = parse(arguments)
    torch.set_num_threads(1)  # the tensors are small
    arms, splits = options.arms or FIRST + OTHERS, options.splits or 4
    stages = STAGES if options.models is None else [Stage(model, arms, splits) for model in options.models]
    end = time.monotonic() + 60 * options.minutes
    desks = {stage.model: desk_of(stage.model, options, end) for stage in stages}
    is_complete = fill(desks, stages, options.conditions)
    rows = {model: compared(desk.task, desk.store.cells) for model, desk in desks.items()}
    for model, own in rows.items():
        if own:
            plot(desks[model].task, own, file_of(model, options.out).with_suffix(".png"))
            print(f"\n{desks[model].task.title}\n\n{table(desks[model].task, own, to_uniform)}")
    print("\n" + "\n".join(decisions(rows)))
    if not is_complete:
        print("\nCells are missing: run this again to go on.")


if __name__ == "__main__":
    main()
