"""Elastic jobs take half a minute each, for Horovod's driver has to notice and to start processes."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: the most telling ones, two minutes together on an idle machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(300, method="thread"))
