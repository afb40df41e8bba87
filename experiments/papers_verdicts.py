"""The claims of the GRAWA paper beside what `convergence`, `flatness` and `communication` have measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from experiments.comparison import shown
from experiments.convergence_arms import ARMS
from experiments.convergence_report import minus
from experiments.flatness_report import beside, ratio

Found = Mapping[str, Any]
Row = Mapping[str, float]
FORMS = ("MGRAWA", "LGRAWA", "MGRAWA, local", "LGRAWA, local")
RIVALS = ("EASGD", "LSGD")


def claims_table(errors: Found, flat: Found, waits: Found, sizes: Sequence[int]) -> str:
    """Each claim, what was measured, and the verdict.

    Args:
        errors, flat, waits: the summaries of `convergence`, `flatness` and `communication`.
        sizes: numbers of workers.
    """
    lines = [
        f"| claim | {' | '.join(f'{size} workers' for size in sizes)} | verdict |",
        "|---" * (2 + len(sizes)) + "|",
    ]
    lines += _of_errors(errors, sizes)
    lines += _of_flatness(flat, sizes)
    lines += [_of_gaps(errors, sizes), _of_rounds(waits, sizes)]
    return "\n".join(lines)


def verdict(rows: Sequence[Row]) -> str:
    """By the protocol: seen where a mean difference is below 0 with Holm's p below .05, contrary where it is above."""
    sure = [row for row in rows if row["holm"] < 0.05]
    below = sum(row["mean"] < 0 for row in sure)
    if not sure:
        return "not seen"
    found = [f"seen in {below}"] * (below > 0) + [f"**contrary** in {len(sure) - below}"] * (below < len(sure))
    return f"{', '.join(found)} of {len(rows)}"


def _compared(
    claim: str, sizes: Sequence[int], names: Sequence[str], row_of: Callable[[int, str], Row],
    show: Callable[[Row], str] = lambda row: shown(row, 2),
) -> str:  # fmt: skip
    """A line of the table."""
    rows = [[row_of(size, name) for name in names] for size in sizes]
    cells = ["; ".join(f"{name} {show(row)}" for name, row in zip(names, own, strict=True)) for own in rows]
    return f"| {claim} | {' | '.join(cells)} | {verdict([row for own in rows for row in own])} |"


def _of_errors(errors: Found, sizes: Sequence[int]) -> Iterator[str]:
    for other in (*RIVALS, "DP+SGD", "DP+SAM"):
        claim = f"smaller test error than {other} (difference, points)"
        yield _compared(claim, sizes, FORMS, partial(minus, errors, b=other))
    yield _compared(
        "LGRAWA has a smaller error than MGRAWA", sizes, ("fresh", "local"),
        lambda size, name: minus(errors, size, *(f"{form}{', local' * (name == 'local')}" for form in FORMS[1::-1])),
    )  # fmt: skip
    yield _compared(
        "it is the weights that help: minus uniform, all else equal", sizes, FORMS,
        lambda size, form: errors[f"{size} workers, control: {form} − its control"],
    )  # fmt: skip
    yield _compared(
        "the same, minus uniform as tuned", sizes, FORMS, lambda size, form: minus(errors, size, form, "uniform")
    )
    yield _compared(
        "faster convergence: modelled seconds to the final error of DP+SGD, minus its own", sizes, FORMS,
        lambda size, form: errors[f"{size} workers, seconds: {form} − DP+SGD"], shown,
    )  # fmt: skip


def _of_flatness(flat: Found, sizes: Sequence[int]) -> Iterator[str]:
    for other in (*RIVALS, "DP+SGD", "DP+SAM", "uniform"):
        claim = f"flatter minima than {other}: ratio of the Hessians' norms"
        yield _compared(claim, sizes, FORMS, partial(beside, flat, b=other), ratio)
    yield _compared(
        "the same, over uniform, all else equal", sizes, FORMS,
        lambda size, form: flat[f"{size} workers, norm, control: {form} − its control"], ratio,
    )  # fmt: skip


def _of_gaps(errors: Found, sizes: Sequence[int]) -> str:
    cells, least = [], []
    for size in sizes:
        gaps = {name: errors[f"{name}, {size} workers"]["gap"] for name in ARMS}
        least.append(min(gaps, key=gaps.__getitem__))
        mine = "; ".join(f"{form} {gaps[form]:.1f}" for form in FORMS)
        cells.append(f"{mine}; least: {least[-1]} {gaps[least[-1]]:.1f}")
    said = "seen" if all(name.startswith("LGRAWA") for name in least) else "not seen"
    return f"| LGRAWA has the smallest generalisation gap (points, no test) | {' | '.join(cells)} | {said} |"


def _of_rounds(waits: Found, sizes: Sequence[int]) -> str:
    cells, holds = [], []
    for size in sizes:
        rows = {name: waits[f"{name}, {size} workers, best"] for name in (*RIVALS, *FORMS[:2])}
        total = {name: row["communication"] + row["passes"] for name, row in rows.items()}
        cells.append("; ".join(f"{name} {row['rounds']}, {total[name]:.1f} s" for name, row in rows.items()))
        for form in FORMS[:2]:
            fewer = all(rows[form]["rounds"] < rows[name]["rounds"] for name in RIVALS)
            holds.append(fewer and all(total[form] < total[name] for name in RIVALS))
    said = "seen" if all(holds) else f"not seen (in {sum(holds)} of {len(holds)})"
    claim = "fewer rounds and less time for communication than EASGD and LSGD, each at its best (modelled seconds)"
    return f"| {claim} | {' | '.join(cells)} | {said} |"
