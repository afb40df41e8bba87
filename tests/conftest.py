"""Settings common to all tests."""

from __future__ import annotations

from faults import fault, pytest_addoption, pytest_runtest_makereport  # noqa: F401  (pytest finds them here)
from hypothesis import settings

# The machine may be busy with other ranks: how long one example takes says nothing about the code.
settings.register_profile("grawa_hvd", deadline=None)
settings.load_profile("grawa_hvd")
