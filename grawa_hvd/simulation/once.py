"""The policy of a round among workers of one process: it is asked once, and all are told the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from grawa_hvd.averaging.policy import Averaging, Mixing, Observed, Recipe


@dataclass(frozen=True)
class Once(Averaging):
    """A policy for one round: every rank would compute the same from the same rows.

    Args:
        mix: the policy; required.
    """

    mix: Averaging = field(kw_only=True)
    said: list[tuple[Mixing, Any]] = field(init=False, default_factory=list)

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """What the policy says.

        Raises:
            ValueError: if it has not one average for all.
        """
        if not self.said:
            mixing, after = self.mix(observed, state)
            if mixing.weights.shape != observed.norms.shape:
                raise ValueError(
                    f"averaging must be a policy with one average for all workers, weights [workers, layers], but "
                    f"{type(self.mix).__name__} has weights of shape {tuple(mixing.weights.shape)}: that is not "
                    "simulated"
                )
            self.said.append((mixing, after))
        return self.said[0]


def check_recipe(recipe: Recipe) -> None:
    """Whether a round of this recipe can be simulated.

    Raises:
        ValueError: if it has pieces that are not known here.
    """
    known = {"mix", "outer", "pull", "starts_at"}
    defaults = recipe._field_defaults
    unknown = [
        name for name in recipe._fields if name not in known and not _same(getattr(recipe, name), defaults.get(name))
    ]
    if unknown:
        raise ValueError(
            f"averaging must be a policy of which simulate knows all pieces, but {type(recipe.mix).__name__} also has "
            f"{' and '.join(unknown)}"
        )


def _same(value: Any, default: Any) -> bool:
    return value is default or (not isinstance(value, torch.Tensor) and bool(value == default))
