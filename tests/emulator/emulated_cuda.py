"""A pytest plugin: the extension of GRAWA_EMULATOR in place of the package's own, and a device "cuda" to test it on."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

import pytest
import torch


def _load(path: str) -> None:
    loader = importlib.machinery.ExtensionFileLoader("grawa_hvd._C", path)
    spec = importlib.util.spec_from_loader("grawa_hvd._C", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[spec.name] = module


# A build without CUDA knows the device, but says that there is none.
torch.cuda._lazy_init = lambda: None
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
_load(os.environ["GRAWA_EMULATOR"])


def _device_of(item: pytest.Item) -> object:
    return item.callspec.params.get("device") if hasattr(item, "callspec") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the tests of all devices those of this one."""
    other = [item for item in items if _device_of(item) != "cuda"]
    config.hook.pytest_deselected(items=other)
    items[:] = [item for item in items if _device_of(item) == "cuda"]
