"""What the small experiments have in common: their command line, runs that are kept, and intervals."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results"
NORMAL_95 = 1.959964


def parser(name: str, document: str | None, seeds: int) -> argparse.ArgumentParser:
    """The options that every experiment has.

    Args:
        name: of the module.
        document: its docstring, shown by --help.
        seeds: how many there are unless --seeds says otherwise.
    """
    made = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}", description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("--seeds", type=_positive, default=seeds, help="seeds 0, 1, … (default: %(default)s)")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results (default: experiments/results)")
    return made


def parsed_after_convergence(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options of what goes on from the results of `experiments.convergence`, with the folder of both, `out`."""
    parser.add_argument(
        "--out", type=Path, default=RESULTS,
        help="folder of convergence.json and of the results (default: experiments/results)",
    )  # fmt: skip
    parsed = parser.parse_args(arguments)
    if not (parsed.out / "convergence.json").exists():
        parser.error(f"{parsed.out} has no convergence.json: run python -m experiments.convergence first")
    return parsed


def runs(file: Path, settings: Mapping[str, Any], cases: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Run each case that the file does not have yet, and keep its result there: an interrupted experiment goes on.

    Args:
        file: JSON; its folder is made.
        settings: what all results depend on; kept in the file.
        cases: name → a function that returns numbers, lists or dictionaries.

    Returns:
        Name → result, of the cases asked for.

    Raises:
        ValueError: if the results in the file are of other settings.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(file.read_text()) if file.exists() else {"settings": dict(settings), "runs": {}}
    if content["settings"] != json.loads(json.dumps(settings)):
        raise ValueError(f"{file} has results of other settings, {content['settings']}: remove it, or choose --out")
    for name, run in tqdm(cases.items(), desc=file.stem, unit="run", mininterval=1):
        if name not in content["runs"]:
            content["runs"][name] = run()
            write(file, content)
    return {name: content["runs"][name] for name in cases}


def summarize(file: Path, summary: Mapping[str, Any]) -> None:
    """Put what was concluded from the runs into their file."""
    write(file, {**json.loads(file.read_text()), "summary": dict(summary)})


def write(file: Path, content: Mapping[str, Any]) -> None:
    """JSON, a line for each setting, run and conclusion; whole or not at all."""
    parts = []
    for name, part in content.items():
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
        parts.append(f"{json.dumps(name)}: {{\n{lines}\n}}")
    unfinished = file.with_suffix(".part")
    unfinished.write_text("{\n" + ",\n".join(parts) + "\n}\n")
    unfinished.replace(file)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half of its 95% interval (Student's t); the half is NaN for a single value."""
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return mean, float("nan")
    return mean, float(t.ppf(0.975, count - 1)) * statistics.stdev(values) / count**0.5


def paired(values: Sequence[float], control: Sequence[float]) -> tuple[float, float]:
    """`interval` of the differences from a control with the same seeds."""
    return interval([value - other for value, other in zip(values, control, strict=True)])


def share(hits: int, count: int) -> tuple[float, float, float]:
    """A share, and the ends of its 95% interval (Wilson, JASA 1927)."""
    z, found = NORMAL_95, hits / count
    middle = (found + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (found * (1 - found) / count + z * z / (4 * count * count)) ** 0.5
    return found, middle - half, middle + half


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, but is {text!r}")
    return int(text)
