"""Train for minutes while workers are killed, and say what share of the time went into steps that count.

An elastic horovodrun of 4 workers on this machine, or of 12 on three hosts made of network namespaces, trains a small
model. Every 15 s one worker is ended by SIGKILL or SIGSEGV, in a local step or within a round, and started again. Then
the same faults meet hvd.DistributedOptimizer with hvd.elastic.TorchState. The 15 s count from when all workers are
there again, which takes Horovod some time. The loss must have kept falling, no worker may be set back by more than a
commit, and nothing may be left: otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import ranks, soak_job, soak_plot, soak_report
from benchmarks.cluster import cluster

METHODS = {"grawa_hvd": "grawa", "hvd.DistributedOptimizer": "horovod"}
SECONDS_TO_DIE = 3.0  # for a worker that is to die in its next collective
SECONDS_TO_GO = 10.0  # for processes to end after the launcher has


def disturb(job: soak_job.Job, faults: list[soak_job.Fault], seconds: float, bar: tqdm) -> None:
    """Inject the faults, each after so many seconds since the job was whole again."""
    begin, left = time.monotonic(), list(faults)
    whole_since, broken_since = begin, None
    while (spent := time.monotonic() - begin) < seconds:
        now = time.monotonic()
        if broken_since is not None:
            job.check(in_time=now < broken_since + soak_job.PATIENCE)
            if now > broken_since + SECONDS_TO_DIE and job.is_whole():
                whole_since, broken_since = now, None
        elif left and now > whole_since + left[0].after and spent < seconds - left[0].after:
            job.inject(left.pop(0))
            broken_since = now
        job.check()
        last = job.workers().values()
        steps = max((one.get("step", 0) for one in last), default=0)
        bar.set_postfix_str(f"{len(job.injected)} faults, {len(last)} workers, step {steps}", refresh=False)
        bar.update(min(spent, seconds) - bar.n)
        time.sleep(0.25)


def soak(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One job with its faults, and what it comes to."""
    plan = {
        "method": METHODS[name], "period": options.period, "commit_every": options.commit_every, "batch": options.batch,
        "lr": options.lr, "gloo_timeout": options.gloo_timeout,
    }  # fmt: skip
    seconds = 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="grawa-soak-"))
    place = soak_job.CLUSTER if options.cluster else soak_job.ONE_MACHINE
    with soak_job.started(place, plan, folder) as job, tqdm(
        total=seconds, desc=name, leave=False, file=sys.stdout, mininterval=2,
        bar_format="{desc} |{bar:30}| {n:.0f} of {total:.0f} s{postfix}",
    ) as bar:  # fmt: skip
        job.wait_until_whole()
        disturb(job, soak_job.faults(options.seed, seconds, options.every), seconds, bar)
        code = job.stop()
        left = {"processes_left": job.processes_left(SECONDS_TO_GO), "files_left": job.files_left()}
        found = soak_report.figures(job.logs(), job.injected, plan)
        if options.keep is not None:
            (options.keep / f"{plan['method']}.log").write_text((folder / "output").read_text())
    row = {"name": name, **plan, "size": place.workers, "exit_code": code, **left, **found}
    return {**row, "complaints": soak_report.complaints(row, plan)}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; what cannot be run is refused here."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=summary, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--minutes", type=float, default=10.0, help="for each of the methods (default: %(default)s)")
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD",
        help=f"of {', '.join(METHODS)} (default: all, one after the other)")  # fmt: skip
    add("--cluster", action="store_true",
        help="12 workers, 4 on each of 3 hosts of scripts/cluster (root); a host goes with any of its 4")  # fmt: skip
    add("--every", type=float, default=15.0, help="seconds of work from fault to fault (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the faults (default: %(default)s)")
    add("--period", type=int, default=16, help="local steps from round to round (default: %(default)s)")
    add("--commit-every", type=int, default=32, help="steps, of both methods (default: %(default)s)")
    add("--batch", type=int, default=64, help="of each worker (default: %(default)s)")
    add("--lr", type=float, default=0.05, help="of both methods (default: %(default)s)")
    add("--gloo-timeout", type=int, default=20, metavar="SECONDS",
        help="HOROVOD_GLOO_TIMEOUT_SECONDS of both: how long Horovod waits for a dead worker, and for a new one that "
        "still imports PyTorch (default: %(default)s)")  # fmt: skip
    add("--json", type=Path, help="write all figures there")
    add("--plot", type=Path, help="write the picture there")
    add("--keep", type=Path, metavar="FOLDER", help="write what the jobs said there")
    options = parser.parse_args(arguments)
    if options.minutes * 60 < 2 * options.every:
        parser.error(f"--minutes must be twice --every or more, but is {options.minutes:g} of {options.every:g} s each")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the jobs, prints the table, and writes JSON and picture where asked; 1 if anything was lost."""
    options = parse(arguments)
    # timeout(1) and a closed terminal must leave no job behind.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    described = ranks.environment()
    rows: list[dict[str, Any]] = []
    chosen = {name: getattr(options, name) for name in ("minutes", "every", "seed", "cluster")}
    results = {**described, **chosen, "rows": rows}
    with cluster(len(soak_job.CLUSTER.hosts)) if options.cluster else nullcontext():
        for name in options.methods:
            rows.append(soak(name, options))
            if options.json is not None:  # what is there already must not depend on the job to come
                options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(soak_report.table(rows))
    if options.json is not None:
        print(f"All figures: {options.json}")
    if options.plot is not None:
        soak_plot.plot(results, options.plot)
        print(f"Picture: {options.plot}")
    for row in rows:
        for complaint in row["complaints"]:
            print(f"{row['name']}: {complaint}")
    return int(any(row["complaints"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
