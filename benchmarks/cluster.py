"""12 ranks on 3 hosts at several rates: throughput, bytes on the wire and time to accuracy, ours beside Horovod's.

`make bench-cluster`. Makes the hosts out of network namespaces (scripts/cluster; needs root), launches all ranks once
for each rate, with all methods in turn in the same launch, and prints a table and what the goals say.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import cluster_plot, cluster_report
from benchmarks.cluster_methods import ALONE, HOROVOD, NAMES
from grawa_hvd.plan import bits

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = [sys.executable, str(ROOT / "scripts" / "cluster")]
# Below this a bare allreduce of 10 million parameters takes seconds, and a handful of them minutes.
SLOWEST_FOR_ROUNDS = 0.5e9
LONGEST = 1500
ENDING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def cluster(hosts: int) -> Iterator[None]:
    """The hosts, for the block."""
    subprocess.run([*CLUSTER, "up", "--hosts", str(hosts), "--rate", "none"], check=True)
    try:
        yield
    finally:
        for number in ENDING:  # a second signal must not leave the hosts half taken down
            signal.signal(number, signal.SIG_IGN)
        subprocess.run([*CLUSTER, "down"], check=True)


def measure(rate: str, options: argparse.Namespace, figures: Path) -> dict[str, Any]:
    """The cell of one rate: a launch of all ranks.

    Raises:
        subprocess.CalledProcessError: if the launch fails.
    """
    subprocess.run([*CLUSTER, "rate", rate], check=True)
    ranks = options.hosts * options.ranks_per_host
    where = ",".join(f"host{number + 1}:{options.ranks_per_host}" for number in range(options.hosts))
    rounds = options.round_layers if bits(rate) >= SLOWEST_FOR_ROUNDS else 0
    subprocess.run(
        [
            *(*CLUSTER, "exec", "--timeout", str(LONGEST), "host1", "--", "env", "HOROVOD_DYNAMIC_PROCESS_SETS=1"),
            "TORCH_CPP_LOG_LEVEL=ERROR",  # the hosts have no names to look up, and torch warns of it
            *(str(Path(sys.executable).with_name("horovodrun")), "--gloo", "-np", str(ranks), "-H", where),
            *("--network-interfaces", "eth0", sys.executable, "-m", "benchmarks.cluster_worker"),
            *("--rate", rate, "--width", str(options.width), "--seconds", str(options.seconds)),
            *("--round-layers", str(rounds), "--seeds", str(options.seeds), "--json", str(figures)),
            *("--methods", *options.methods),
        ],
        cwd=ROOT,
        check=True,
    )
    cell: dict[str, Any] = json.loads(figures.read_text())
    return cell


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; what cannot be run is refused here."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cluster", description=summary, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--rates", nargs="+", default=["none", "1gbit", "100mbit"], metavar="RATE",
        help="of each host's link, each way; none: unshaped (default: none 1gbit 100mbit)")  # fmt: skip
    add("--methods", nargs="+", default=NAMES, choices=NAMES, metavar="METHOD", help=f"of: {'; '.join(NAMES)}")
    add("--seconds", type=float, default=60.0, help="of throughput at each rate (default: %(default)s)")
    add("--seeds", type=int, default=3, help="of the time to 97 %% on digits; 0: none (default: %(default)s)")
    add("--width", type=int, default=40_000, help="of the hidden layer, 75 parameters each (default: %(default)s)")
    add("--round-layers", type=int, default=10,
        help="of a million parameters each: the model whose round is timed beside a bare allreduce, at 500 Mbit/s or "
        "more; 0: none (default: %(default)s)")  # fmt: skip
    add("--hosts", type=int, default=3, help="default: %(default)s")
    add("--ranks-per-host", type=int, default=4, help="default: %(default)s")
    add("--json", type=Path, help="write all figures there")
    add("--plot", type=Path, help="write the picture there")
    options = parser.parse_args(arguments)
    if not {ALONE, HOROVOD} <= set(options.methods):
        parser.error(f"--methods must have {ALONE!r} and {HOROVOD!r}: the others are held against them")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints tables, and writes JSON and picture where asked."""
    options = parse(arguments)
    # timeout(1) and a closed terminal must not leave the hosts behind.
    for number in ENDING:
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    cells = []
    with cluster(options.hosts), tempfile.TemporaryDirectory() as folder:
        for rate in options.rates:
            cells.append(measure(rate, options, Path(folder, "cell.json")))
            print(cluster_report.table(cells[-1]), flush=True)
            if options.json is not None:  # what is there already must not depend on the rates to come
                options.json.write_text(json.dumps({"cells": cells}, indent=1) + "\n")
    print("", *cluster_report.verdicts(cells), sep="\n")
    if options.json is not None:
        print(f"All figures: {options.json}")
    if options.plot is not None:
        cluster_plot.plot(cells, options.plot)
        print(f"Picture: {options.plot}")


if __name__ == "__main__":
    main()
