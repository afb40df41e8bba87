"""The command line of scripts/cluster."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from . import lifecycle
from .execute import execute
from .system import ClusterError

DESCRIPTION = """\
Several hosts on one machine, to try what runs on a cluster: each is a network namespace with an address, a name and an
sshd, all on one switch. Needs root. docs/cluster.md tells more."""

EPILOG = """\
example:
  scripts/cluster up --hosts 3 --rate 1gbit
  scripts/cluster exec host1 -- horovodrun --gloo -np 12 -H host1:4,host2:4,host3:4 --network-interfaces eth0 \\
    python examples/digits.py
  scripts/cluster down"""


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    main_parser = argparse.ArgumentParser("cluster", description=DESCRIPTION, epilog=EPILOG, formatter_class=raw)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help_: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}. {more}".strip())

    up = add("up", "make a cluster", "Installs iproute2 and openssh-server where they are missing.")
    up.add_argument("--hosts", type=int, default=3, metavar="N", help="how many, 1 to 64 (default: %(default)s)")
    up.add_argument("--rate", default="1gbit", help="of each link, each way, or none (default: %(default)s)")
    run = add(
        "exec",
        "run a command on a host",
        "In the present folder and environment. What it starts, on whichever host, ends when it does.",
    )
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="end it after that time, with exit code 124")
    run.add_argument("host", help="host1, host2, …")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="program and arguments")
    rate = add("rate", "change the rate of links that are in use")
    rate.add_argument("rate", help="as 100mbit or 2.5gbit, or none")
    rate.add_argument("hosts", nargs="*", metavar="HOST", help="whose links (default: all)")
    add("bytes", "print what each host's interface has received and sent, as JSON")
    add("status", "print a line a host; exit code 1 if no cluster is up")
    add("down", "remove the cluster and all that belongs to it", "Does nothing if there is none.")
    return main_parser


def dispatch(arguments: argparse.Namespace) -> int:
    if arguments.command == "exec":
        words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
        if not words:
            raise ClusterError("exec needs a command: scripts/cluster exec host1 -- COMMAND")
        return execute(arguments.host, words, arguments.timeout)
    if arguments.command == "up":
        print(lifecycle.describe(lifecycle.up(arguments.hosts, arguments.rate)))
    elif arguments.command == "rate":
        lifecycle.set_rate(arguments.rate, arguments.hosts)
    elif arguments.command == "bytes":
        print(json.dumps(lifecycle.counters(), indent=1))
    elif arguments.command == "status":
        print(lifecycle.status())
    elif not lifecycle.down():
        print("No cluster is up.")
    return 0


def main() -> int:
    # timeout(1) and a closed terminal have to pass through the clean-up too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        return dispatch(parser().parse_args())
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
