"""A pytest plugin: the extension of GRAWA_EXTENSION in place of the package's own."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

import torch  # noqa: F401  (whose libraries it needs)


def load(path: str) -> None:
    """Make the shared library at `path` what `import grawa_hvd._C` gives."""
    loader = importlib.machinery.ExtensionFileLoader("grawa_hvd._C", path)
    spec = importlib.util.spec_from_loader("grawa_hvd._C", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[spec.name] = module


load(os.environ["GRAWA_EXTENSION"])
