"""A pytest plugin: the extension of GRAWA_EXTENSION in place of the package's, and a device "cuda" to test it on."""

from __future__ import annotations

import os
from typing import Any

import other_extension  # noqa: F401  (loads it)
import pytest
import torch

# A build without CUDA knows the device, but says that there is none.
torch.cuda._lazy_init = lambda: None
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1


def _is_wanted(item: pytest.Item) -> bool:
    """Of the tests of all devices those of this one, and in a graph none that the host would have to count in."""
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    can_run = "GRAWA_EMULATOR_CAPTURES" not in os.environ or params.get("counts_on") != "cpu"
    return params.get("device") == "cuda" and can_run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {item: _is_wanted(item) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if not wanted[item]])
    items[:] = [item for item in items if wanted[item]]
