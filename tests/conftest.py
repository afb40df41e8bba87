"""Settings common to all tests."""

from __future__ import annotations

from faults import (  # noqa: F401  (pytest finds them here)
    fault,
    pytest_addoption,
    pytest_configure,
    pytest_runtest_makereport,
    pytest_runtest_setup,
)
from hypothesis import settings

# The machine may be busy with other ranks: how long one example takes says nothing about the code.
settings.register_profile("grawa_hvd", deadline=None)
settings.load_profile("grawa_hvd")
