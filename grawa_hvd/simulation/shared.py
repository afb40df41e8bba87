"""What all workers of a round compute alike from the same rows: in one process, once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from grawa_hvd.averaging.policy import Mix, Mixing, Observed, Recipe
from grawa_hvd.rounds.rows import Header, Rows


class Everyone(Observed):
    """What a policy sees of all workers."""

    def of(self, workers: list[int]) -> Observed:
        """The same: all workers take part in every round of a simulation."""
        return self


class SharedRows(Rows):
    """The rows of all workers, which all of them read.

    Args:
        matrix: [M, K], in the host's memory.
        headers: of all workers.
    """

    def __init__(self, matrix: Tensor, headers: dict[int, Header]) -> None:
        super().__init__(matrix, headers)
        self._seen: Everyone | None = None
        self._radius = super().radius

    @property
    def radius(self) -> float:
        """See `Rows`."""
        return self._radius

    def observed(self, *what: Any) -> Observed:
        """See `Rows`: the same in every call."""
        if self._seen is None:
            self._seen = Everyone(**vars(super().observed(*what)))
        return self._seen


@dataclass(frozen=True)
class Once(Mix):
    """A policy for one round.

    Args:
        mix: the policy.
    """

    mix: Mix
    said: list[tuple[Mixing, Any]] = field(init=False, default_factory=list)

    def __call__(self, observed: Observed, state: Any) -> tuple[Mixing, Any]:
        """What the policy says."""
        if not self.said:
            self.said.append(self.mix(observed, state))
        return self.said[0]


def check_recipe(recipe: Recipe) -> None:
    """Whether a round of this recipe can be simulated.

    Raises:
        ValueError: if it has pieces that are not known here.
    """
    known = {"mix", "outer", "pull", "starts_at", "exchange"}
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
    return value is default or (not isinstance(value, Tensor) and bool(value == default))
