"""What tests do to workers: a list in a file, of which docs/reliability.md has a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

Note = Callable[[str, str], None]
NOTED = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=Path, metavar="FILE", help="note there which faults went as promised")


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Note:
    """Say what a test does to workers, and under which launcher."""
    noted = request.node.stash.setdefault(NOTED, [])
    return lambda kind, under: noted.append({"kind": kind, "under": under})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    report = yield
    path = item.config.getoption("--faults")
    if path is not None and report.when == "call" and item.stash.get(NOTED, []):
        found = json.loads(path.read_text()) if path.exists() else {}
        found[item.nodeid] = [{**one, "survived": report.passed} for one in item.stash[NOTED]]
        path.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
    return report
