"""Arguments are refused at the door: by name, with their value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def plain_number(value: Any) -> Any:
    """A number of NumPy, or a tensor of no dimension, as the number of Python's that it is; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Whether a value is an integer in a range.

    Raises:
        ValueError: if not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {allowed}, but is {value!r}")


def check_number(name: str, value: Any, right: Callable[[float], bool], allowed: str) -> None:
    """Whether a value is a number and right.

    Raises:
        ValueError: if not.
    """
    number = plain_number(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not right(number):
        raise ValueError(f"{name} must be {allowed}, but is {value!r}")


def check_choice(name: str, value: Any, *choices: str) -> None:
    """Whether a value is one of some texts.

    Raises:
        ValueError: if not.
    """
    if not isinstance(value, str) or value not in choices:
        quoted = [f'"{choice}"' for choice in choices]
        raise ValueError(f"{name} must be {', '.join(quoted[:-1])} or {quoted[-1]}, but is {value!r}")
