"""Kernels with a barrier less, which the tests on the emulator must notice: else they would not see a race."""

from __future__ import annotations

import re
from collections.abc import Mapping

from emulator_build import Variant

BARRIER = re.compile(r"__syncthreads\(\);[^\n]*")
# Barriers that nothing needs today, by the comment on their line.
SPARE = ("a call before this one may still be reading",)


def mutants(texts: Mapping[str, str]) -> list[Variant]:
    """A variant for each barrier of csrc/cuda, without it."""
    found = []
    for name, text in texts.items():
        for barrier in BARRIER.finditer(text):
            if any(comment in barrier[0] for comment in SPARE):
                continue
            line = text.count("\n", 0, barrier.start()) + 1
            edited = text[: barrier.start()] + text[barrier.end() :]
            found.append(Variant(f"without-{name.replace('/', '-')}-{line}", edits={name: edited}))
    return found
