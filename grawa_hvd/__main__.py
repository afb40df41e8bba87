"""`python -m grawa_hvd`: what is installed, what it was built with, and what is missing for full speed.

`plan` says what period keeps communication small, `doctor` checks this machine before a run.
"""

from __future__ import annotations

import argparse
import sys

from grawa_hvd import doctor, installation, plan

COMMANDS = {"plan": plan, "doctor": doctor}


def main(arguments: list[str] | None = None) -> int:
    """Do what is asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m grawa_hvd", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="command")
    parsers = {}
    for name, module in COMMANDS.items():
        parsers[name] = commands.add_parser(name, description=module.__doc__, help=module.__doc__)
        module.add_arguments(parsers[name])
    options = parser.parse_args(arguments)
    if options.command is None:
        print(installation.report(installation.inspect()))
        return 0
    code: int = COMMANDS[options.command].run(options, parsers[options.command].error)
    return code


if __name__ == "__main__":
    if code := main():
        sys.exit(code)
