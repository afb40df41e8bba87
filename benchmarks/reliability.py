"""The tables of docs/reliability.md: what the soak comes to, and what was done to workers there and in the tests."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.tables import markdown, results

PLACES = {"step": "wherever it is", "round": "within a round"}
LAUNCHES = {
    "elastic `horovodrun`": "elastic horovodrun", "`horovodrun`": "horovodrun", "`torchrun`": "torchrun",
    "one process": "workers in one process",
}  # fmt: skip
SOAKS = ("soak", "soak_cluster")
# Of the tests in them nothing happens to processes, hosts and links.
WITHIN = ("tests/single", "tests/parallel")


def faults() -> str:
    """What was done to workers in the soak and in the tests, under which launchers, and what went as promised."""
    soaks = [one for name in SOAKS for one in results(name)["rows"] if one["name"] == "grawa_hvd"]
    tests = results("faults").items()
    outside = [
        {"kind": f"{one['signal']} {PLACES[one['place']]}", "under": "elastic horovodrun",
         "survived": not soak["complaints"]}
        for soak in soaks
        for one in soak["faults"]
    ]  # fmt: skip
    outside += [one for name, noted in tests if not name.startswith(WITHIN) for one in noted]
    within = [one for name, noted in tests if name.startswith(WITHIN) for one in noted]

    def row(title: str, some: list[dict[str, Any]]) -> list[str]:
        under = [sum(one["under"].startswith(words) for one in some) for words in LAUNCHES.values()]
        return [title, *(str(count or "") for count in under), str(len(some)), str(sum(o["survived"] for o in some))]

    rows = []
    for title, found in {"processes, hosts and links": outside, "numbers, settings and files": within}.items():
        kinds = sorted({one["kind"] for one in found})
        rows += [row(kind, [one for one in found if one["kind"] == kind]) for kind in kinds]
        rows.append(row(f"**{title}**", found))
    return markdown([*LAUNCHES, "injected", "as promised"], [*rows, row("**all**", outside + within)])


def goodput(name: str) -> str:
    """What a soak comes to, beside Horovod's optimizer."""
    rows = results(name)["rows"]
    lines = {
        "goodput: share of the time on steps that count": [f"{row['goodput']:.0%}" for row in rows],
        "on steps that were lost": [f"{row['lost']:.1%}" for row in rows],
        "on failing, restarting and committing": [f"{row['apart']:.0%}" for row in rows],
        "samples that count, a second": [f"{row['samples_that_count_per_second']:,.0f}" for row in rows],
        "failures; an hour": [f"{len(row['faults'])}; {row['failures_per_hour']:.0f}" for row in rows],
        "set back at most, of a commit's steps":
            [f"{row['set_back_at_most']} of {row['commit_every']}" for row in rows],
        "s until the others go on: median, longest": [_times(row["seconds_until_a_step"]) for row in rows],
        "s until all are there again": [_times(row["seconds_until_whole"]) for row in rows],
    }  # fmt: skip
    return markdown([f"`{row['name']}`" for row in rows], [[name, *values] for name, values in lines.items()])


def health() -> str:
    """A training step with the checks over one without, and over itself."""
    rows = results("health")["rows"]
    entries = [[f"{row['median']:.3f} ({row['lower_quartile']:.3f}–{row['upper_quartile']:.3f})"] for row in rows]
    return markdown(
        ["time of the processor"], [[row["name"], *entry] for row, entry in zip(rows, entries, strict=True)]
    )


def _times(summary: dict[str, float]) -> str:
    return f"{summary['median']:.0f}, {summary['longest']:.0f}"


TABLES = {
    "GOODPUT": partial(goodput, "soak"),
    "GOODPUT_12": partial(goodput, "soak_cluster"),
    "FAULTS": faults,
    "HEALTH": health,
}
