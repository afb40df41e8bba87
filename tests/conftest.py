"""Settings common to all tests."""

from __future__ import annotations

from hypothesis import settings

# The machine may be busy with other ranks: how long one example takes says nothing about the code.
settings.register_profile("grawa_hvd", deadline=None)
settings.load_profile("grawa_hvd")
