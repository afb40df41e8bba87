"""Values as text that ranks can compare: alike where the values are alike, in whatever process they were made."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any


def described(value: Any) -> str:
    """Numbers and strings as they are, tensors and arrays by a digest, functions and other objects by their name.

    A container is described by what is in it, a dataclass by its fields. An object that has a method `describe` says
    itself what is to be compared; without it, what an object holds is not.
    """
    if isinstance(value, Mapping):
        entries = sorted(f"{described(key)}: {described(entry)}" for key, entry in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described, value))}]"
    return _described_object(value)


def described_fields(value: Any) -> str:
    """A dataclass by its name and its fields, but those that it leaves out of comparisons (`compare=False`)."""
    entries = [f"{field.name}={described(getattr(value, field.name))}" for field in fields(value) if field.compare]
    return f"{type(value).__name__}({', '.join(entries)})"


def _described_object(value: Any) -> str:
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # a tensor, or an array of a library that may be missing
        numbers = hashlib.sha256(described(value.tolist()).encode()).hexdigest()
        return f"{value.dtype}{list(value.shape)} {numbers[:12]}"
    if isinstance(value, functools.partial):
        return f"partial({described([value.func, value.args, value.keywords])})"
    if isinstance(value, type) or not hasattr(value, "describe"):
        return _named(value)
    return str(value.describe())


def _named(value: Any) -> str:
    """A function or class by its qualified name, a dataclass by its fields, another object by what it says itself."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if is_dataclass(value):
        return described_fields(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
