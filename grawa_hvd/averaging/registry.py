"""The policies that have a name: every policy of a file in this folder, by the name of its class."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from inspect import isabstract
from pathlib import Path

from grawa_hvd.averaging.policy import Averaging, Mix


def _found() -> dict[str, type[Mix]]:
    """Name → policy. An `Averaging` writes `scores`; a class that does not is the base of some that do."""
    found: dict[str, type[Mix]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name == "registry":
            continue
        for value in vars(import_module(f"grawa_hvd.averaging.{module.name}")).values():
            if not isinstance(value, type) or not issubclass(value, Mix) or isabstract(value):
                continue
            if getattr(value, "scores", None) is not Averaging.scores:
                found[value.__name__.lower()] = value
    return found


POLICIES = _found()


def policy(averaging: str | Mix) -> Mix:
    """The policy that `averaging=` names, or is.

    Raises:
        ValueError: for an unknown name or another type.
    """
    if isinstance(averaging, Mix):
        return averaging
    if isinstance(averaging, str) and averaging in POLICIES:
        return POLICIES[averaging]()
    allowed = ", ".join(repr(name) for name in POLICIES)
    raise ValueError(f"averaging must be one of {allowed}, or a policy from grawa_hvd.averaging, but is {averaging!r}")
