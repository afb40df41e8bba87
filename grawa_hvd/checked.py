"""Arguments are refused at the door: by name, with their value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LARGEST = 2**53  # of the integers that ranks tell each other, in float64


def plain_number(value: Any) -> Any:
    """A number of NumPy, or a tensor of no dimension, as the number of Python's that it is; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_same(value: Any, other: Any) -> bool:
    """Whether two things are equal; no array is, whose comparison has many answers."""
    return getattr(value, "ndim", 0) == 0 and bool(value == other)


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Whether a value is an integer in a range.

    Raises:
        ValueError: if not.
    """
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not least <= value <= (LARGEST if most is None else most):
        is_too_large = is_integer and value > least
        allowed = f"of at least {least}" if most is None and not is_too_large else f"from {least} to {most or LARGEST}"
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
